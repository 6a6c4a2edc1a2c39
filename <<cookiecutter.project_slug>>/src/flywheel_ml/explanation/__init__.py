"""What each column contributed to a prediction."""
