"""The protocols that a prediction can be asked for in."""
