"""Other ways to train on the same pictures with the same network, beside fastast: `python -m benchmarks.peers`."""
