"""The one error a user is meant to read."""


class UserError(ValueError):
  """Something outside the program is wrong, and the message says what to do.

  Raised for malformed files, impossible settings, missing folders and the
  like. The programs in `experiments/` print the message alone and exit with
  status 2; inside Python it is an ordinary `ValueError`.
  """
