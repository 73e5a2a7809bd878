"""What a run does on the device: the network, and the steps that score, train and evaluate it."""
