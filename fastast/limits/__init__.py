"""A GPU's power limit and clocks for the time of a run."""
