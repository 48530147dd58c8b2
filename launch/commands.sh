# What launchers share: settings, checks, and commands that are shown or run.
#
# A launcher sets `settings` and `verbs`, sources this file, and calls
# `read_arguments "$@"`. Runs on bash 3.2, which macOS ships.
# shellcheck shell=bash
# shellcheck disable=SC2154  # read_arguments sets what `settings` names

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit

# What travels to the machines: what training needs of the last commit.
parts=(
  pyproject.toml setup.py constraints.txt README.md LICENSE
  trm_jax configs experiments launch
)
problems=()
verb=""
dry_run=false
extra=()      # arguments after --, for the training program
# shellcheck disable=SC2034  # read by slurm.sh
options=()    # of --sbatch=..., which may be repeated

# The head of the launcher is its help.
print_help() {
  sed -n -e '2,/^$/{' -e 's/^# //p' -e 's/^#$//p' -e '}' "$0"
}

say() {
  echo "$*" >&2
}

refuse() {
  say "error: $*"
  say "       see $0 --help"
  exit 2
}

# set_setting NAME VALUE: a flag without its dashes, with _ for -.
set_setting() {
  case " $settings " in
    *" $1 "*) ;;
    *) refuse "--$(echo "$1" | tr _ -): there is no such flag" ;;
  esac
  # Kubernetes and ssh take commands of one line.
  case $2 in
    *[[:cntrl:]]*) refuse "--$1: must be one line without control characters" ;;
  esac
  if [ "$1" = sbatch ]; then
    options+=("$2")
  else
    IFS="" read -r "${1?}" <<<"$2"
  fi
}

# Every setting from --setting=VALUE, else from TRM_SETTING.
read_arguments() {
  local setting variable value
  for setting in $settings; do
    [ "$setting" = sbatch ] && continue
    variable=TRM_$(echo "$setting" | tr '[:lower:]' '[:upper:]')
    set_setting "$setting" "${!variable-}"
  done
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) print_help && exit 0 ;;
      --dry-run) dry_run=true ;;
      --) shift && break ;;
      --*=*)
        setting=${1%%=*}
        set_setting "$(echo "${setting#--}" | tr - _)" "${1#*=}"
        ;;
      --*) refuse "$1: needs a value, as in $1=VALUE" ;;
      -*) refuse "$1: there is no such flag" ;;
      *)
        [ -z "$verb" ] || refuse "two verbs, $verb and $1; flags start with --"
        verb=$1
        ;;
    esac
    shift
  done
  for value in "$@"; do
    case $value in
      *[[:cntrl:]]*) refuse "an argument after -- spans several lines" ;;
    esac
    extra+=("$value")
  done
  case " $verbs " in
    *" ${verb:-none} "*) ;;
    *) refuse "the verb is '$verb'; expected one of: $verbs" ;;
  esac
}

# The checks note what is missing; `stop_if_lacking` tells it all at once.
lack() {
  problems+=("$1")
}

# need SETTING WHAT-TO-WRITE...
need() {
  local setting=$1
  shift
  [ -n "${!setting}" ] || lack "--$setting (or TRM_$(echo "$setting" |
    tr '[:lower:]' '[:upper:]')) is missing: $*"
}

# The name becomes that of machines, folders and workloads.
need_name() {
  need name "a name for the run, such as sudoku"
  if [ -n "$name" ] &&
    ! [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]]; then
    lack "--name=$name: must be lower-case letters, digits and dashes, a
    letter first, at most 40 in all, for it names machines and folders too"
  fi
}

# Several hosts save one checkpoint together, and spot machines lose theirs.
need_bucket() {
  need workdir "the run's folder in a bucket, gs://BUCKET/FOLDER"
  case $workdir in
    "" | gs://?*) ;;
    *) lack "--workdir=$workdir: must be gs://BUCKET/FOLDER, for every host
    writes to it and it must outlive the machines" ;;
  esac
}

need_whole() {
  [[ ${!1} =~ ^[0-9]+$ ]] || lack "--$1=${!1}: must be a whole number"
}

# Only what is committed under configs/ travels to the machines.
need_config() {
  need config "a file such as configs/sudoku_extreme.py"
  [ -n "$config" ] || return 0
  case $config in
    configs/*) ;;
    *) lack "--config=$config: must be a committed file under configs/" ;;
  esac
  [ -f "${config%%:*}" ] || lack "--config=$config: there is no such file"
}

# need_tool PROGRAM WHERE-TO-GET-IT...; a dry run needs none.
need_tool() {
  local tool=$1
  shift
  $dry_run || command -v "$tool" >/dev/null ||
    lack "$tool is not installed: $*"
}

need_gcloud() {
  need_tool gcloud "see https://cloud.google.com/sdk/docs/install"
  $dry_run || ! command -v gcloud >/dev/null ||
    [ -n "$(gcloud auth list --filter=status:ACTIVE \
      --format="value(account)" 2>/dev/null)" ] ||
    lack "gcloud is not logged in: run gcloud auth login"
}

stop_if_lacking() {
  [ ${#problems[@]} -gt 0 ] || return 0
  say "error: cannot $verb:"
  local problem
  for problem in "${problems[@]}"; do
    say "  - $problem"
  done
  say "       see $0 --help"
  exit 2
}

# line_of ARG...: a line for another machine's bash. Kubernetes expands $(NAME)
# even in quotes; %q leaves none.
line_of() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

# show ARG...: the line that one would type.
show() {
  local argument line="" mark="'" escaped="'\\''"
  for argument in "$@"; do
    case $argument in
      "" | *[!-A-Za-z0-9_./:=,@%+]*)
        argument="'${argument//$mark/$escaped}'"
        ;;
    esac
    line="$line $argument"
  done
  echo "${line# }"
}

# Shows a command in a dry run, else runs it.
call() {
  if $dry_run; then
    show "$@"
  else
    "$@"
  fi
}

# The last commit, and only that, so that a run can be repeated.
archive() {
  if ! $dry_run; then
    local changed
    changed=$(git status --porcelain -- "${parts[@]}")
    [ -z "$changed" ] || say "note: not committed, so not sent: $changed"
  fi
  call mkdir -p runs/launch &&
    call git archive --format=tar.gz --output="runs/launch/$name.tar.gz" \
      HEAD -- "${parts[@]}"
}

# unpack: the archive's folder, from which a container or a job is run.
unpack() {
  archive
  call rm -rf "runs/launch/$name"
  call mkdir "runs/launch/$name"
  call tar -xzf "runs/launch/$name.tar.gz" -C "runs/launch/$name"
}

# Copies the run to runs/NAME, where every program here can read it.
fetch_bucket() {
  call mkdir -p "runs/$name"
  call gcloud storage rsync --recursive "$workdir" "runs/$name"
}
