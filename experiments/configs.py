"""Lists the configs that --config takes by name, or describes one of them.

    trm configs [NAME]

The description of a config has its source, its variants, the expected score,
the hardware and the hours.
"""

from trm_jax.cli import app, configs, shipped


def main(argv: list[str]):
  """Prints all summaries, or one description."""
  if not argv[1:]:
    print(shipped.listing("configs"))
    return
  name = app.only_argument(argv, "config")
  print(shipped.docstring("configs", configs.find(name).stem))


if __name__ == "__main__":
  app.run(main)
