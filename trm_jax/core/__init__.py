"""Pure functions of arrays: the model, its recursion, halting and losses."""
