"""What a run will do: its budget, its segments of one phase, and the progress along them."""
