"""The phases of a run, as logs, summaries and energy parts name them."""

PROBE = "probe"  # before any training, with --start probe
WARMUP = "warmup"  # dense, before the gate
GATED = "gated"
EVAL = "eval"
ANNEAL = "anneal"  # dense, after the gate
DENSE = "dense"  # a run without a gate
