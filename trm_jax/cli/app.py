"""Running a program: flags, configs, and errors in one line.

A program is a file experiments/NAME.py, run as `trm NAME`, or in a checkout as
`python -m experiments.NAME`. Its docstring is its help: a summary line, which
`trm --help` lists, then its usage as `trm NAME --flag=...`.

    from absl import flags

    from trm_jax.cli import app

    _WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")

    def main(argv: list[str]):
      from trm_jax.run.folder import RunFolder  # imports jax

      app.no_arguments(argv)
      ...

    if __name__ == "__main__":
      app.run(main)

Import what loads jax in `main`, so that `--help` is fast.
"""

import errno
import os
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any

from absl import app as absl_app
from absl import flags, logging
from ml_collections import config_flags

from trm_jax.cli import configs, shipped, streams
from trm_jax.errors import UserError, printable

_PINNED = {
  "jax_enable_x64": False,
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
}

# Flags defined here appear in the --help of the calling program.
flags.disclaim_key_flags()


def run(main: Callable[[list[str]], int | None], prints_log: bool = False):
  """Runs a program; a `UserError` is printed as one line, with status 2.

  Losing the standard output never ends a program. If it could not be written,
  as on a full disk, the status is 1 at the end; but 0 if its reader ended, as
  `head` does, or if the output is only the log of a program that `prints_log`,
  so that scripts go on behind a training that has finished.
  """
  streams.protect()
  # An inherited backend, as of a notebook, may not exist here.
  os.environ["MPLBACKEND"] = "agg"

  def guarded(argv: list[str]) -> int | None:
    # Errors are raised as well as logged, and Orbax logs a full disk in a
    # thousand lines.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _hide_late_reads
    _pin_draws()
    try:
      status = main(argv)
      if processes := _joined():
        processes.leave()
      lost = streams.lost()
      if lost and lost.errno != errno.EPIPE:
        reason = lost.strerror
        print(f"error: cannot write the output: {reason}", file=sys.stderr)
        return status or int(not prints_log)
      return status
    except UserError as error:
      return _fail(str(error))
    except KeyboardInterrupt:
      return _end_all("interrupted", 130)
    except Exception as error:
      return _end_by(error)

  absl_app.run(guarded, flags_parser=_parse_flags)


def say(message: str):
  """Prints and flushes, so that log files are up to date."""
  print(printable(message), flush=True)


def define_config() -> flags.FlagHolder:
  """Defines `--config=NAME[:variant]` and `--config.x.y=value`."""
  flag = config_flags.DEFINE_config_file(
    "config", None,
    "The experiment, NAME[:variant] or FILE.py[:variant]; `trm configs` "
    "lists the names.",
  )  # fmt: skip
  flags.FLAGS["config"].parser = _ConfigParser()
  flags.declare_key_flag("config")
  return flag


def define_processes() -> Callable[[], None]:
  """Defines the flags of runs with several processes.

  Returns:
    A function that joins the processes, if the flags say so; call it after
    parsing and before any use of devices.
  """
  distributed = flags.DEFINE_bool(
    "distributed", False, "Join the processes that the cluster names."
  )
  coordinator = flags.DEFINE_string(
    "coordinator", "", "host:port of process 0; implies --distributed."
  )
  num_processes = flags.DEFINE_integer(
    "num_processes", None, "Processes in all.", lower_bound=1
  )
  process_id = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", lower_bound=0
  )
  heartbeat = flags.DEFINE_integer(
    "heartbeat_seconds", 60,
    "A process without a sign of life for so long is lost; all others end.",
    lower_bound=5,
  )  # fmt: skip
  join = flags.DEFINE_integer(
    "join_seconds", 300, "How long to wait for all processes.", lower_bound=1
  )

  def join_them():
    from trm_jax.run import processes

    place = processes.Place(
      coordinator.value, num_processes.value, process_id.value,
      heartbeat.value, join.value,
    )  # fmt: skip
    if distributed.value or place.coordinator:
      processes.join(place)
    elif place.num_processes is not None or place.process_id is not None:
      raise UserError(
        "--num_processes and --process_id say nothing alone: give "
        "--coordinator=HOST:PORT as well"
      )

  return join_them


def agree(config: Mapping[str, Any]):
  """Checks that all processes have the same config but for `data.cache_dir`."""
  from trm_jax.run import processes

  config = {name: dict(section) for name, section in config.items()}
  config.get("data", {}).pop("cache_dir", None)
  processes.agree({"config": config})


def define_skip_bad_rows() -> flags.FlagHolder[bool]:
  """Defines `--skip_bad_rows`."""
  return flags.DEFINE_bool(
    "skip_bad_rows", False, "Leave out bad puzzles of files and count them."
  )


def config_values(flag: flags.FlagHolder) -> dict[str, Any]:
  """The resolved config as plain nested dicts."""
  if flag.value is None:
    known = ", ".join(shipped.names("configs"))
    raise UserError(f"--config is missing: name a FILE.py, or one of {known}")
  return flag.value.to_dict()


def config_overrides(name: str) -> dict[str, Any]:
  """The config fields that the command line overrides."""
  return config_flags.get_override_values(flags.FLAGS[name])


def only_argument(argv: list[str], name: str) -> str:
  """The program's one positional argument."""
  if len(argv) != 2:
    raise UserError(f"expected exactly one {name}, got {argv[1:]}")
  return argv[1]


def no_arguments(argv: list[str]):
  """Refuses positional arguments, such as flags without dashes."""
  if argv[1:]:
    raise UserError(f"unexpected arguments {argv[1:]}: flags start with --")


def whole_numbers(text: str, flag: str) -> list[int]:
  """Reads "1,2,4" as positive numbers, ascending and without repeats."""
  try:
    numbers = sorted({int(part) for part in text.split(",")})
  except ValueError:
    numbers = [0]
  if numbers[0] < 1:
    raise UserError(f"--{flag}={text}: must be numbers from 1, as in 1,2,4")
  return numbers


class _ConfigParser(flags.ArgumentParser):
  """Parses the value of `--config` with `configs.load`."""

  def parse(self, argument: str) -> Any:
    return configs.load(argument)

  def flag_type(self) -> str:
    return "config"


def _pin_draws():
  """Makes random numbers independent of the environment."""
  for name, value in _PINNED.items():
    variable, text = name.upper(), str(value).lower()
    if (found := os.environ.get(variable, text)) != text:
      print(f"note: {variable}={found} has no effect here", file=sys.stderr)
    os.environ[variable] = text
    if jax := sys.modules.get("jax"):
      jax.config.update(name, value)


def _hide_late_reads(unraisable: Any):
  """Hides an error of reads that end after Orbax has closed its event loop.

  This happens when a damaged checkpoint is refused.
  """
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


def _joined() -> types.ModuleType | None:
  """The module `processes` if there are several processes, else None."""
  processes = sys.modules.get("trm_jax.run.processes")
  return processes if processes and processes.are_several() else None


def _fail(message: str) -> int:
  return _end_all(f"error: {message}", 2)


def _end_by(error: Exception) -> int:
  """Ends with an error that is no `UserError`; a single process raises it."""
  import jax

  is_device = isinstance(error, jax.errors.JaxRuntimeError)
  text = str(error).lower()
  if isinstance(error, MemoryError) or (
    is_device and ("resource_exhausted" in text or "out of memory" in text)
  ):
    return _fail(
      "out of memory: try a smaller config.train.batch_size and "
      "config.eval.batch_size, config.model.remat='full' or more devices. "
      f"Cause: {str(error)[:200].partition(chr(10))[0]}"
    )
  processes = _joined()
  if not processes:
    raise error
  if is_device:
    processes.await_reason()
  from trm_jax.run import checkpoint

  traceback.print_exc()
  return _end_all(f"{type(error).__name__}: {checkpoint.first_line(error)}", 1)


def _end_all(message: str, status: int) -> int:
  """Prints why this process ends, and ends all other processes."""
  print(printable(message), file=sys.stderr, flush=True)
  if processes := _joined():
    processes.tell_failure(message.removeprefix("error: "))
    # A normal exit would wait for the other processes.
    sys.stdout.flush()
    os._exit(status)
  return status


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS([argv[0], *map(_with_home, argv[1:])])
  except SystemExit:  # --help was printed, which absl counts as a failure
    sys.exit(0)
  except Exception as error:  # overriding a field may raise anything
    status = _fail(_fault(error))
    print(f"       see {_program(argv[0])} --help", file=sys.stderr)
    sys.exit(status)


def _with_home(argument: str) -> str:
  """Expands `~` in paths, which shells leave as it is in `--flag=~/path`.

  Not in `--config.data.FIELD=~/path`: the config keeps it, and readers of data
  expand it.
  """
  flag, equals, value = argument.partition("=")
  if not argument.startswith("-"):
    return os.path.expanduser(argument)
  if "." in flag:
    return argument
  return flag + equals + ",".join(map(os.path.expanduser, value.split(",")))


def _program(name: str) -> str:
  """The command that runs this program."""
  spec = sys.modules["__main__"].__spec__
  if spec is None or spec.name == "__main__":
    return name
  return f"python -m {spec.name}"


def _fault(error: BaseException) -> str:
  """One line that says what is wrong with the flags."""
  cause = error
  while cause:
    if isinstance(cause, UserError):
      return str(cause)  # without what absl adds
    cause = cause.__cause__ or cause.__context__
  if isinstance(error, (KeyError, AttributeError)):
    return _unknown_field(error)
  return str(error).strip().splitlines()[0]


def _unknown_field(error: Any) -> str:
  """The message for an override of a field that does not exist."""
  while isinstance(error, BaseException):
    error = error.args[0]
  name, *hint = str(error).splitlines()  # the field in quotes, then a hint
  name = name.strip("'\"")
  override = next(
    (a for a in sys.argv[1:] if name in a.split("=")[0].split(".")), "--config"
  )
  return " ".join([f"{override}: the config has no field {name!r}.", *hint])
