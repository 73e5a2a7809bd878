"""What training costs, in forwards of the network."""

# A dense training step of one sample: a forward, and a backward that costs about two (gradients of activations and of
# weights).
DENSE_COST = 3.0
