"""Lists the configs that --config takes by name, or explains one of them.

    trm configs [NAME]

A config's text says its source, its variants, the score to expect, on which
hardware and in how many hours.
"""

from trm_jax.cli import app, configs, shipped


def main(argv: list[str]):
  """Prints all summaries, or one text."""
  if not argv[1:]:
    print(shipped.listing("configs"))
    return
  name = app.only_argument(argv, "config")
  print(shipped.docstring("configs", configs.find(name).stem))


if __name__ == "__main__":
  app.run(main)
