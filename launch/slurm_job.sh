#!/usr/bin/env bash
# The job that slurm.sh submits: slurm_job.sh GPUS LOGS FLAG...
#
# Slurm warns this shell by USR1 before the time limit. It then sends SIGTERM
# to training, which saves and exits with 143, and puts itself back into the
# queue. SIGTERM itself is no such warning: it comes from scancel too, after
# which nothing should start again. Preempted jobs are requeued by Slurm.
set -euo pipefail
gpus=$1 logs=$2
shift 2

warned=false
# shellcheck disable=SC2329  # the trap calls it
warn() {
  warned=true
  scancel --signal=TERM "$SLURM_JOB_ID"  # all steps, but not this shell
}
trap warn USR1

# One process a node, with all its GPUs: each program is compiled and the data
# held once a node, and no binding of GPUs to tasks, which differs from cluster
# to cluster, can matter. JAX must be told, for under Slurm each process would
# otherwise take a single GPU and leave the others idle.
JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((gpus - 1)))
export JAX_LOCAL_DEVICE_IDS

# The first to have saved must not end the others.
srun --kill-on-bad-exit=0 --output="$logs/%t.log" --open-mode=append \
  bash launch/worker.sh train --distributed "$@" &
step=$!
status=0
wait $step || status=$?
while kill -0 $step 2>/dev/null; do  # a warning ends `wait` early
  status=0
  wait $step || status=$?
done

echo "training exited with $status"
# 2: the user must mend something first.
if $warned && [ "$status" != 0 ] && [ "$status" != 2 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
