#!/usr/bin/env bash
# Runs training on one TPU slice of Google Cloud, spot machines first of all.
#
#   launch/tpu_vm.sh VERB [--FLAG=VALUE ...] [--dry-run] [-- TRAINING FLAGS]
#
# Verbs
#   create   asks for the slice, and waits until it is there
#   install  sends the last commit to all hosts and installs it
#   start    installs, then trains on all hosts; training outlives this command
#   resume   makes the slice again if it was preempted, then starts
#   watch    resumes whenever the slice is preempted, until training is done
#   status   the slice, and what training does on each host
#   logs     copies each host's log to runs/NAME/logs
#   stop     saves, and ends training on all hosts; end watch before
#   fetch    copies the run to runs/NAME
#   delete   gives the slice back; until then it costs money
#
# Flags; each can be given as an environment variable too, --name as TRM_NAME
#   --name         the run and its slice, as in sudoku
#   --project      project of Google Cloud
#   --zone         where the slice is, as in us-west4-a
#   --accelerator  what it is, as in v5litepod-16, v6e-8, v4-32
#   --runtime      system image; known for v2 to v6e
#   --capacity     spot (default) or on-demand
#   --config       the experiment, FILE.py[:variant], committed in configs/
#   --workdir      the run's folder, gs://BUCKET/FOLDER
#   --poll         seconds between questions while waiting; 60 by default
#
# What follows -- is for experiments.train, as --config.optim.lr=2e-4. It must
# be given to resume and watch as to start: the same command goes on, bit for
# bit; another config in the same folder is refused.
#
# --dry-run prints the commands, one a line, and runs none; those of resume and
# watch are for a slice that was preempted.

# shellcheck disable=SC2154  # read_arguments sets what `settings` names
set -euo pipefail
settings="name project zone accelerator runtime capacity config workdir poll"
verbs="create install start resume watch status logs stop fetch delete"
# shellcheck source=launch/commands.sh
source "$(dirname "$0")/commands.sh"

max_tries=10      # failures in a row before watch gives up
calm_polls=10     # looks at running training that end such a row

check() {
  need_name
  need project "the project's id, as gcloud projects list shows it"
  need zone "a zone that has this accelerator, such as us-west4-a"
  case $verb in
    create | resume | watch)
      need accelerator "its type, such as v5litepod-16"
      [ -n "$runtime" ] || choose_runtime
      case ${capacity:=spot} in
        spot | on-demand) ;;
        *) lack "--capacity=$capacity: must be spot or on-demand" ;;
      esac
      ;;
  esac
  case $verb in
    start | resume | watch) need_config && need_bucket ;;
    fetch) need_bucket ;;
  esac
  : "${poll:=60}"
  need_whole poll
  need_gcloud
  case $verb in
    install | start | resume | watch) need_tool git "see https://git-scm.com" ;;
  esac
  stop_if_lacking
}

choose_runtime() {
  case $accelerator in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    "") ;;
    *) lack "--runtime is missing: the image for $accelerator, see
    https://cloud.google.com/tpu/docs/runtimes" ;;
  esac
}

# Queued resources: a slice is made when there is room for one.
queue() {
  local action=$1
  shift
  call gcloud compute tpus queued-resources "$action" "$name" \
    --zone="$zone" --project="$project" "$@"
}

on_all_hosts() {
  local command=$1
  shift
  call gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" \
    --project="$project" --worker=all --quiet --command="$command" "$@"
}

# state_of queued-resources|tpu-vm FORMAT: its state, "" where there is none,
# UNKNOWN where the question failed.
state_of() {
  local kind=$1 answer
  if answer=$(gcloud compute tpus "$kind" describe "$name" --zone="$zone" \
    --project="$project" --format="value($2)" 2>&1); then
    echo "$answer" | tail -n 1  # warnings come before it
  elif [[ $answer != *NOT_FOUND* ]]; then
    say "$answer"
    echo UNKNOWN
  fi
}

# A slice that was preempted may be listed as active for a while.
slice_state() {
  local state
  state=$(state_of queued-resources state.state)
  if [ "$state" = ACTIVE ]; then
    state=$(state_of tpu-vm state)
    [ -n "$state" ] || state=PREEMPTED
  fi
  echo "$state"
}

show_state() {
  call gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --project="$project" --format="value(state.state)"
  call gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
    --project="$project" --format="value(state)"
}

create() {
  local spot=()
  [ "$capacity" = on-demand ] || spot=(--spot)
  queue create --node-id="$name" --accelerator-type="$accelerator" \
    --runtime-version="$runtime" ${spot[@]+"${spot[@]}"}
}

delete() {
  queue delete --force --quiet
}

# Waits until the slice is there; fails where it never will be.
await_slice() {
  if $dry_run; then
    show_state
    return
  fi
  local state
  while true; do
    state=$(slice_state)
    case $state in
      READY) return ;;
      FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | "")
        say "error: the slice is ${state:-absent}; see $0 status"
        return 1
        ;;
    esac
    say "the slice is $state; asking again in $poll s"
    sleep "$poll"
  done
}

# install_archive: the commit that the run was started with.
install_archive() {
  call gcloud compute tpus tpu-vm scp "runs/launch/$name.tar.gz" \
    "$name:trm_jax.tar.gz" --zone="$zone" --project="$project" --worker=all \
    --quiet &&
    on_all_hosts "if [ -e trm_jax ]; then bash trm_jax/launch/worker.sh idle; \
fi && rm -rf trm_jax && mkdir trm_jax && tar -xzf trm_jax.tar.gz -C trm_jax \
&& bash trm_jax/launch/worker.sh install tpu,gcs"
}

install() {
  archive
  install_archive
}

train() {
  on_all_hosts "$(line_of bash trm_jax/launch/worker.sh start --distributed \
    --config="$config" --workdir="$workdir" ${extra[@]+"${extra[@]}"})"
}

start() {
  install
  train
}

# go_on STATE: from that state of the slice to running training.
go_on() {
  case $1 in
    "") create ;;
    FAILED | SUSPENDED | PREEMPTED | TERMINATED) delete && create ;;
  esac &&
    await_slice &&
    { [ -e "runs/launch/$name.tar.gz" ] ||
      archive; } &&
    install_archive &&
    train
}

# What all hosts say of training, in a word.
training_state() {
  local lines
  lines=$(on_all_hosts "bash trm_jax/launch/worker.sh status") || {
    echo unknown
    return
  }
  case $lines in
    *"exited 2"*) echo refused ;;
    *running*) echo running ;;
    *absent* | *"exited "[!0]*) echo stopped ;;
    *"exited 0"*) echo finished ;;
    *) echo unknown ;;
  esac
}

resume() {
  if $dry_run; then
    show_state
    go_on PREEMPTED
  else
    go_on "$(slice_state)"
  fi
}

watch() {
  local tries=0 calm=0 state
  if $dry_run; then
    resume
    on_all_hosts "bash trm_jax/launch/worker.sh status"
    return
  fi
  while true; do
    state=$(slice_state)
    [ "$state" != READY ] || state=$(training_state)
    case $state in
      finished)
        say "training is done; $0 fetch, then $0 delete"
        return
        ;;
      refused)
        say "error: training was refused; $0 logs tells why"
        return 2
        ;;
      running)
        calm=$((calm + 1))
        [ "$calm" -lt "$calm_polls" ] || tries=0
        ;;
      "" | FAILED | SUSPENDED | PREEMPTED | TERMINATED | stopped)
        calm=0
        say "$(date '+%F %T') ${state:-no slice}: starting again"
        if ! go_on "$state" ||
          [ "$state" = stopped ] || [ "$state" = FAILED ]; then
          tries=$((tries + 1))
          if [ "$tries" -ge "$max_tries" ]; then
            say "error: failed $tries times in a row; see $0 status and logs"
            return 1
          fi
          sleep $((poll * (1 << (tries < 4 ? tries : 4))))  # ever longer
        fi
        ;;
      *) say "$(date '+%F %T') $state" ;;
    esac
    sleep "$poll"
  done
}

status() {
  show_state
  on_all_hosts "bash trm_jax/launch/worker.sh status"
}

logs() {
  call mkdir -p "runs/$name/logs"
  on_all_hosts "bash trm_jax/launch/worker.sh log" \
    --output-directory="runs/$name/logs"
}

read_arguments "$@"
check
case $verb in
  create) create && await_slice ;;
  stop) on_all_hosts "bash trm_jax/launch/worker.sh stop" ;;
  fetch) fetch_bucket ;;
  *) "$verb" ;;
esac
