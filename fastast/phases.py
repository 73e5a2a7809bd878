"""The phases of a run, as logs, summaries and energy parts name them."""

WARMUP = "warmup"  # dense, before the gate
GATED = "gated"
ANNEAL = "anneal"  # dense, after the gate
DENSE = "dense"  # a run without a gate
