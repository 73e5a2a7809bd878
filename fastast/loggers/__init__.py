"""What a run tells the user while it trains and when it ends."""
