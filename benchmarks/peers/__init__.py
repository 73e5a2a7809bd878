"""Other trainers beside fastast on the same pictures with the same network: `python -m benchmarks.peers`."""
