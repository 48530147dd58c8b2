"""What every program here shares: short errors, flags and configs."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import app as absl_app
from absl import flags, logging
from ml_collections import config_flags

from trm_jax.errors import UserError
from trm_jax.run import checkpoint, processes

# Flags defined here belong to the program that asks for them: --help shows
# the program's own flags only.
flags.disclaim_key_flags()


def run(main: Callable[[list[str]], int | None]):
  """Runs a program; what its user can mend is told in a line, status 2."""

  def guarded(argv: list[str]) -> int | None:
    # What is logged as an error is raised as well, and Orbax logs a full disk
    # in a thousand lines.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _pass_over_late_reads
    try:
      status = main(argv)
      processes.leave()
      return status
    except UserError as error:
      return _fail(str(error))
    except KeyboardInterrupt:
      return _end_all("interrupted", 130)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        processes.await_reason()
        return _end_all_by(error)
      return _fail(
        "out of memory: try a smaller config.train.batch_size and "
        "config.eval.batch_size, config.model.remat='full' or more devices. "
        f"Cause: {str(error).splitlines()[0][:200]}"
      )
    except Exception as error:
      return _end_all_by(error)

  absl_app.run(guarded, flags_parser=_parse_flags)


def say(message: str):
  """Prints a sentence at once, even where the output goes to a file."""
  print(message, flush=True)


def define_config() -> flags.FlagHolder:
  """The flag `--config=FILE.py[:variant]` and its `--config.x.y=value`."""
  flag = config_flags.DEFINE_config_file(
    "config", None, "The experiment, FILE.py or FILE.py:variant."
  )
  flags.declare_key_flag("config")
  return flag


def define_processes() -> Callable[[], None]:
  """The flags by which several processes become one run.

  Returns:
    A function that joins them if they ask for it; call it after parsing and
    before any device is touched.
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
  """Refuses processes that were not all given the same config.

  Each may keep its data elsewhere.
  """
  config = {name: dict(section) for name, section in config.items()}
  config.get("data", {}).pop("cache_dir", None)
  processes.agree({"config": config})


def define_skip_bad_rows() -> flags.FlagHolder[bool]:
  """The flag `--skip_bad_rows` of the programs that read csv files."""
  return flags.DEFINE_bool(
    "skip_bad_rows", False, "Leave out bad rows of csv files and count them."
  )


def config_values(flag: flags.FlagHolder) -> dict[str, Any]:
  """The resolved config as plain nested dicts."""
  if flag.value is None:
    raise UserError(
      "--config is missing: name a file such as configs/sudoku_extreme.py"
    )
  try:
    return flag.value.to_dict()
  except OSError as error:  # the file could not be loaded
    raise UserError(_fault(error)) from error
  except AttributeError as error:
    raise UserError(
      f"--config={_config_path()}: get_config() must return a ConfigDict"
    ) from error


def config_overrides(name: str) -> dict[str, Any]:
  """What the command line changed in a config."""
  return config_flags.get_override_values(flags.FLAGS[name])


def only_argument(argv: list[str], name: str) -> str:
  """The program's one positional argument."""
  if len(argv) != 2:
    raise UserError(f"expected exactly one {name}, got {argv[1:]}")
  return argv[1]


def no_arguments(argv: list[str]):
  """Refuses positional arguments, which are mostly forgotten dashes."""
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


def _pass_over_late_reads(unraisable: Any):
  """Keeps one known noise from the user, and shows all else as ever.

  When a damaged checkpoint is refused, reads of its other arrays may still
  end after Orbax has closed its event loop; nobody waits for them any more.
  """
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


def _fail(message: str) -> int:
  return _end_all(f"error: {message}", 2)


def _end_all_by(error: Exception) -> int:
  """Ends by an error that nobody foresaw, which one process just raises."""
  if not processes.are_several():
    raise error
  traceback.print_exc()
  return _end_all(f"{type(error).__name__}: {checkpoint.first_line(error)}", 1)


def _end_all(message: str, status: int) -> int:
  """Says why this process ends, to all other processes too."""
  print(message, file=sys.stderr, flush=True)
  if processes.are_several():
    processes.tell_failure(message.removeprefix("error: "))
    # An orderly end would wait for what the others no longer do.
    sys.stdout.flush()
    os._exit(status)
  return status


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except SystemExit:  # --help was printed, which absl counts as a failure
    sys.exit(0)
  except Exception as error:  # a config file is Python: it may raise anything
    spec = sys.modules["__main__"].__spec__
    program = f"-m {spec.name}" if spec else argv[0]
    status = _fail(_fault(error))
    print(f"       see python {program} --help", file=sys.stderr)
    sys.exit(status)


def _fault(error: BaseException) -> str:
  """What is wrong with the flags, or with the config file, in a line."""
  causes = [error]
  while cause := causes[-1].__cause__ or causes[-1].__context__:
    causes.append(cause)
  for cause in causes:
    place = _place_in_config(cause)
    if place:
      return f"{str(cause) or type(cause).__name__} ({place})"
  text = str(error)
  if "failure to load" in text:  # ml_collections tells of it on first use
    path = _config_path()
    if not os.path.isfile(path):
      return f"--config={path}: there is no such file"
    return f"--config={path}: {causes[-1]}"
  if isinstance(error, SyntaxError):
    return f"the config file is not Python: {text}"
  if "Error whilst parsing config file" in text:
    return f"--config={_config_path()}: {causes[-1]}"
  if "get_config" in text:
    return f"--config={_config_path()}: the file has no function get_config()"
  if isinstance(error, (KeyError, AttributeError)):
    return _unknown_field(str(error.args[0]))
  return text.strip().splitlines()[0] if text else type(error).__name__


def _unknown_field(text: str) -> str:
  """Says which override names no field.

  Args:
    text: of ml_collections: the field in quotes, then perhaps a hint in a
      second line.
  """
  name, *hint = text.splitlines()
  name = name.strip("'\"")
  override = next(
    (a for a in sys.argv[1:] if name in a.split("=")[0].split(".")), "--config"
  )
  hint = hint or ["Only fields that the config file sets can be changed."]
  return f"{override}: the config has no field {name!r}. {hint[0]}"


def _place_in_config(error: BaseException) -> str | None:
  """Where in the config file an error arose, if it arose there."""
  place = None
  for frame, line in traceback.walk_tb(error.__traceback__):
    if frame.f_globals.get("__name__") == "config_config":  # ml_collections'
      place = f"{frame.f_code.co_filename}, line {line}"
  return place


def _config_path() -> str:
  """The file of `--config`, as on the command line."""
  for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
    name, _, value = argument.lstrip("-").partition("=")
    if name == "config":
      return (value or following).split(":")[0]
  return ""
