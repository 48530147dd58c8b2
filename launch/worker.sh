#!/usr/bin/env bash
# One machine of a run. The launchers call this there; nobody else needs to.
#
#   worker.sh install EXTRAS      makes the environment: EXTRAS as in tpu,gcs
#   worker.sh train FLAG...       trains until the end
#   worker.sh run EXTRAS FLAG...  installs, then trains until the end
#   worker.sh start FLAG...       trains in the background, with a log
#   worker.sh status              running, absent, or exited and its status
#   worker.sh idle                fails where training is running
#   worker.sh stop                SIGTERM: everything is saved; waits for that
#   worker.sh log                 all that was printed, restarts included
#
# FLAGs are those of experiments.train. Environment and log lie in ~/.trm_jax,
# or in TRM_STATE.
set -euo pipefail

code=$(cd "$(dirname "$0")/.." && pwd)
state=${TRM_STATE:-$HOME/.trm_jax}
python=$state/venv/bin/python

# constraints.txt holds for Python 3.11. Where there is none (TPU images have
# 3.10), uv fetches one; it needs no root.
make_environment() {
  rm -rf "$state/venv"
  if command -v python3.11 >/dev/null && python3.11 -m venv "$state/venv"; then
    return
  fi
  rm -rf "$state/venv"
  PATH=$state/bin:$PATH
  if ! command -v uv >/dev/null; then
    curl -LsSf https://astral.sh/uv/install.sh |
      env UV_INSTALL_DIR="$state/bin" UV_NO_MODIFY_PATH=1 sh
  fi
  uv venv --quiet --seed --python 3.11 "$state/venv"
}

install() {
  mkdir -p "$state"
  "$python" -m pip --version >/dev/null 2>&1 || make_environment
  cd "$code"
  "$python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".[$1]"
}

# The shell becomes the program, so that it is the program that signals reach.
train() {
  cd "$code"
  exec "$python" -m experiments.train "$@"
}

# A process id may be taken by another program after the machine has rebooted.
running() {
  local id
  id=$(cat "$state/pid" 2>/dev/null) &&
    tr '\0' ' ' 2>/dev/null <"/proc/$id/cmdline" |
    grep -q experiments.train
}

# Trains and notes how that ended.
keep() {
  cd "$code"
  local status=0
  "$python" -m experiments.train "$@" &
  echo $! >"$state/pid"
  wait $! || status=$?
  rm "$state/pid"
  echo "$status" >"$state/status"
}

start() {
  if running; then
    echo "already running"  # ssh that lost its line tries again
    return
  fi
  rm -f "$state/pid" "$state/status"
  nohup bash "$0" keep "$@" >>"$state/log" 2>&1 </dev/null &
  until [ -e "$state/pid" ] || [ -e "$state/status" ]; do
    sleep 0.1
  done
  echo "started; the log is $state/log"
}

status() {
  if running; then
    echo running
  elif [ -e "$state/status" ]; then
    echo "exited $(cat "$state/status")"
  else
    echo absent
  fi
}

stop() {
  running || return 0
  kill -TERM "$(cat "$state/pid")"
  while running; do
    sleep 1
  done
  status
}

verb=$1
shift
case $verb in
  install | train | start | keep | status | stop) "$verb" "$@" ;;
  run)
    install "$1"
    shift
    train "$@"
    ;;
  idle)
    if running; then
      echo "training is running here: stop it first" >&2
      exit 1
    fi
    ;;
  log) cat "$state/log" ;;
  *)
    echo "error: worker.sh has no verb '$verb'" >&2
    exit 2
    ;;
esac
