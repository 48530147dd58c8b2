"""Pure functions of arrays: the model, its recursion, halting and losses."""

from trm_jax.core import families as families  # registers them
