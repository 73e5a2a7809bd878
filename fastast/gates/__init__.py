"""Gates: which samples are worth a backward pass. Plain torch and NumPy, for any training loop."""
