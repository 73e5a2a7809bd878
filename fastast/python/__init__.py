"""fastast in Python: `fastast.train`, `fastast.load`, and the run that both return."""
