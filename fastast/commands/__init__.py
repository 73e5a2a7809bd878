"""One file per command of `fastast`."""
