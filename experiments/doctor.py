"""Checks the versions, devices, memory and arithmetic of this machine.

    trm doctor [--out=FILE.json]

Compares what is installed with what the project allows and with builds known to
be faulty; looks at devices, memory, disk and environment variables; compares
gradients of small models with finite differences, and compiled with eager
computation; saves and restores a checkpoint. Takes about half a minute. Exits
with status 1 if there is a fault.
"""

import json
import pathlib

from absl import flags

from trm_jax.cli import app

_OUT = flags.DEFINE_string("out", "", "JSON file for what was found.")


def main(argv: list[str]) -> int:
  """Makes all checks."""
  from trm_jax.inspect import doctor

  app.no_arguments(argv)
  found = list(doctor.examine())
  if _OUT.value:
    text = json.dumps([finding._asdict() for finding in found], indent=2)
    pathlib.Path(_OUT.value).expanduser().write_text(text + "\n")
  for check, state, what, advice in found:
    print(f"{state:6}{check:26}{what}")
    if advice:
      print(f"{'':32}-> {advice}")
  faults = sum(finding.state == doctor.FAULT for finding in found)
  app.say(f"{faults} faults" if faults else "sound")
  return 1 if faults else 0


if __name__ == "__main__":
  app.run(main)
