"""The bench: gates beside the baselines that keep them honest, run by run, and what they add up to."""
