#!/usr/bin/env bash
# Runs training on TPU slices of a GKE cluster, by xpk. The cluster restarts
# training after a preemption: nothing has to watch it.
#
#   launch/gke.sh VERB [--FLAG=VALUE ...] [--dry-run] [-- TRAINING FLAGS]
#
# Verbs
#   create   makes the cluster with its slices
#   install  gathers the last commit in runs/launch/NAME, for the image
#   start    makes the image of that, and trains on all hosts
#   resume   takes the workload away, and starts it again from its checkpoints
#   status   the cluster's workloads
#   logs     what all hosts printed since they were last started
#   stop     takes the workload away; SIGTERM lets it save first
#   fetch    copies the run to runs/NAME
#   delete   deletes the cluster; until then it costs money
#
# Flags; each can be given as an environment variable too, --name as TRM_NAME
#   --name         the run and its workload, as in sudoku
#   --cluster      the cluster's name
#   --project      project of Google Cloud
#   --zone         where the slices are, as in us-west4-a
#   --accelerator  what a slice is, as in v5litepod-16, v6e-256
#   --slices       how many of them; 1 by default
#   --capacity     spot (default) or on-demand
#   --restarts     how often the cluster may start training again; 1000
#   --config       the experiment, FILE.py[:variant], committed in configs/
#   --workdir      the run's folder, gs://BUCKET/FOLDER
#
# What follows -- is for experiments.train, as --config.optim.lr=2e-4. The same
# command goes on, bit for bit; another config in the same folder is refused.
#
# --dry-run prints the commands, one a line, and runs none.

# shellcheck disable=SC2154  # read_arguments sets what `settings` names
set -euo pipefail
settings="name cluster project zone accelerator slices capacity restarts"
settings="$settings config workdir"
verbs="create install start resume status logs stop fetch delete"
# shellcheck source=launch/commands.sh
source "$(dirname "$0")/commands.sh"

# The Python that constraints.txt was tested on.
image=python:3.11-slim
# Seconds between SIGTERM and the end of a host: time to save.
grace=300

check() {
  case $verb in
    install | start | resume | logs | stop | fetch) need_name ;;
  esac
  case $verb in
    create | start | resume | status | logs | stop | delete)
      need cluster "the cluster's name, as xpk cluster list shows it"
      need zone "the zone of its slices, such as us-west4-a"
      need project "the project's id, as gcloud projects list shows it"
      need_tool xpk "pip install xpk; it needs crane, see its page"
      need_tool kubectl "gcloud components install kubectl"
      ;;
  esac
  case $verb in
    create | start | resume)
      need accelerator "its type, such as v5litepod-16"
      : "${slices:=1}"
      need_whole slices
      ;;
  esac
  case ${capacity:=spot} in
    spot | on-demand) ;;
    *) lack "--capacity=$capacity: must be spot or on-demand" ;;
  esac
  case $verb in
    start | resume)
      : "${restarts:=1000}"
      need_whole restarts
      need_config
      need_bucket
      ;;
    fetch) need_bucket ;;
  esac
  case $verb in
    install | start | resume) need_tool git "see https://git-scm.com" ;;
  esac
  [ "$verb" = install ] || need_gcloud
  stop_if_lacking
}

create() {
  call xpk cluster create "${place[@]}" --tpu-type="$accelerator" \
    --num-slices="$slices" "--$capacity"
}

# xpk starts training again after the statuses from 127 on: 143 of SIGTERM, 137
# of SIGKILL; and after 75, which hosts end with that have lost another. 1 and 2
# end it, for the same would only happen again.
submit() {
  call xpk workload create "${place[@]}" --workload="$name" \
    --tpu-type="$accelerator" --num-slices="$slices" \
    --base-docker-image="$image" --script-dir="runs/launch/$name" \
    --max-restarts="$restarts" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds="$grace" \
    --command="exec $(line_of bash launch/worker.sh run tpu,gcs --distributed \
      --config="$config" --workdir="$workdir" ${extra[@]+"${extra[@]}"})"
}

start() {
  unpack
  submit
}

stop() {
  call xpk workload delete "${place[@]}" --workload="$name" --force
}

resume() {
  stop || say "there was no such workload; it is made anew"
  [ -e "runs/launch/$name" ] || unpack
  submit
}

logs() {
  # xpk's clusters are of a region.
  call gcloud container clusters get-credentials "$cluster" \
    --location="${zone%-*}" --project="$project"
  call kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name" \
    --container=jax-tpu --prefix --tail=-1
}

read_arguments "$@"
check
place=(--cluster="$cluster" --project="$project" --zone="$zone")
case $verb in
  install) unpack ;;
  status) call xpk workload list "${place[@]}" ;;
  fetch) fetch_bucket ;;
  delete) call xpk cluster delete "${place[@]}" ;;
  *) "$verb" ;;
esac
