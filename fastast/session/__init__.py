"""A training run from options to verdict: what it opens, saves and survives."""
