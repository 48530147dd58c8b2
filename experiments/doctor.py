"""Checks the versions, devices, memory and arithmetic of this machine.

    trm doctor [--out=FILE.json]

Compares what is installed with what the project allows and with builds known to
be faulty; looks at devices, memory, disk and environment variables; compares
gradients of small models with finite differences, and compiled with eager
computation; saves and restores a checkpoint. Takes about half a minute. Exits
with status 1 if there is a fault.
"""

from absl import flags

from trm_jax.cli import app

_OUT = flags.DEFINE_string("out", "", "JSON file for what was found.")


def main(argv: list[str]) -> int:
  """Makes all checks."""
  from trm_jax.inspect import doctor
  from trm_jax.run import files

  app.no_arguments(argv)
  found = list(doctor.examine())
  if _OUT.value:
    results = [finding._asdict() for finding in found]
    files.write_json(files.locate(_OUT.value), results)
  for check, state, what, advice in found:
    app.say(f"{state:6}{check:26}{what}")
    if advice:
      app.say(f"{'':32}-> {advice}")
  faults = sum(finding.state == doctor.FAULT for finding in found)
  app.say(f"{faults} faults" if faults else "sound")
  return 1 if faults else 0


if __name__ == "__main__":
  app.run(main)
