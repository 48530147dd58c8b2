#!/usr/bin/env bash
# Runs training on GPU nodes of a Slurm cluster, from its login node; the folder
# of this file must be on a disk that all nodes share.
#
#   launch/slurm.sh VERB [--FLAG=VALUE ...] [--dry-run] [-- TRAINING FLAGS]
#
# Verbs
#   install  copies the last commit to runs/launch/NAME and installs it
#   start    installs, then submits the job; at its time limit, or when it is
#            preempted, it saves and goes back into the queue
#   resume   submits the job again, with the commit that it was started with
#   status   the job in the queue
#   logs     the end of each node's log, of runs/NAME/logs
#   stop     saves, and takes the job away
#   fetch    copies the run to runs/NAME; from your own machine with --host
#
# Flags; each can be given as an environment variable too, --name as TRM_NAME
#   --name     the run and its job, as in sudoku
#   --nodes    how many; 1 by default
#   --gpus     GPUs of each node
#   --time     limit of one stay on the nodes, as in 04:00:00
#   --sbatch   one more option of sbatch, as in --sbatch=--partition=gpu;
#              may be given several times
#   --host     for fetch: the login node, as in you@login.cluster.edu
#   --config   the experiment, FILE.py[:variant], committed in configs/
#   --workdir  the run's folder, on a shared disk or gs://BUCKET/FOLDER
#
# What follows -- is for experiments.train, as --config.optim.lr=2e-4. The same
# command goes on, bit for bit; another config in the same folder is refused.
#
# --dry-run prints the commands, one a line, and runs none.

# shellcheck disable=SC2154  # read_arguments sets what `settings` names
set -euo pipefail
settings="name nodes gpus time sbatch host config workdir"
verbs="install start resume status logs stop fetch"
# shellcheck source=launch/commands.sh
source "$(dirname "$0")/commands.sh"

# Seconds between the warning and the time limit: time to save.
grace=120

check() {
  need_name
  case $verb in
    start | resume)
      : "${nodes:=1}"
      need_whole nodes
      need gpus "the number of GPUs of each node, such as 8"
      [ -z "$gpus" ] || need_whole gpus
      need time "the limit of one stay, such as 04:00:00"
      need_config
      ;;
  esac
  case $verb in
    start | resume | fetch)
      need workdir "the run's folder, on a disk that all nodes share"
      ;;
  esac
  case $verb in
    start | resume | status | stop)
      need_tool sbatch "run this on the cluster's login node"
      ;;
    fetch) check_source ;;
  esac
  case $verb in
    install | start)
      need_tool git "see https://git-scm.com"
      check_idle
      ;;
  esac
  stop_if_lacking
  case $workdir in
    /* | gs://*) ;;
    *) workdir=$root/$workdir ;;  # jobs run in another folder
  esac
}

# A job that waits or trains needs the folder that would be replaced.
check_idle() {
  if ! $dry_run && command -v squeue >/dev/null &&
    [ -n "$(squeue --noheader --name="$name" --user="$(id -un)")" ]; then
    lack "--name=$name: there is such a job already; $0 stop ends it"
  fi
}

check_source() {
  case $workdir in
    gs://*) need_gcloud ;;
    *) need_tool rsync "by your system's package manager" ;;
  esac
  # Shells of both ends read this path, each rsync in its own way.
  if [ -n "$host" ] && [[ $workdir != gs://* ]] &&
    ! [[ $workdir =~ ^/[-A-Za-z0-9_./+=@,]*$ ]]; then
    lack "--workdir=$workdir: with --host it must be an absolute path of
    letters, digits and -_./+=@,"
  fi
  case $host in
    -*) lack "--host=$host: must be HOST or USER@HOST" ;;
  esac
}

install() {
  unpack
  call bash "runs/launch/$name/launch/worker.sh" install gpu,gcs
}

# A job waits for those of its name: two never train in one folder.
submit() {
  call mkdir -p "runs/$name/logs"
  call sbatch --job-name="$name" --nodes="$nodes" --ntasks-per-node=1 \
    --gpus-per-node="$gpus" --time="$time" --requeue \
    --signal="B:USR1@$grace" --open-mode=append --dependency=singleton \
    --chdir="$root/runs/launch/$name" \
    --output="$root/runs/$name/logs/job.log" \
    ${options[@]+"${options[@]}"} \
    "$root/runs/launch/$name/launch/slurm_job.sh" "$gpus" \
    "$root/runs/$name/logs" \
    --config="$config" --workdir="$workdir" ${extra[@]+"${extra[@]}"}
}

start() {
  install
  submit
}

resume() {
  [ -e "runs/launch/$name" ] || install
  submit
}

status() {
  call squeue --name="$name" --format="%i %T %M %l %R"
}

logs() {
  call tail -n 20 "runs/$name/logs"/*.log
}

# SIGTERM to all steps, but not to the job's shell, which waits for them.
stop() {
  call scancel --state=PENDING --name="$name"
  call scancel --signal=TERM --name="$name"
}

fetch() {
  case $workdir in
    gs://*) fetch_bucket ;;
    *)
      call mkdir -p "runs/$name"
      call rsync --archive "${host:+$host:}$workdir/" "runs/$name/"
      ;;
  esac
}

read_arguments "$@"
check
"$verb"
