"""Metrics on the test rows, and the gates."""
