"""The one error a user is meant to read."""

_LONGEST = 2000  # characters of a message


def printable(text: str) -> str:
  """A text in which control characters, as of a terminal, are escaped."""
  return "".join(
    c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text
  )


class UserError(ValueError):
  """Something outside the program is wrong, and the message says what to do.

  Raised for malformed files, impossible settings, missing folders and the
  like. The programs in `experiments/` print the message alone and exit with
  status 2; inside Python it is an ordinary `ValueError`.
  """

  def __init__(self, message: str):
    text = printable(message)
    if len(text) > _LONGEST:  # by a value from outside
      half = _LONGEST // 2 - 5
      text = f"{text[:half]} ... {text[-half:]}"
    super().__init__(text)
