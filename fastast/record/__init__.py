"""What a run records of itself and of its pictures, written, and read back as untrusted input."""
