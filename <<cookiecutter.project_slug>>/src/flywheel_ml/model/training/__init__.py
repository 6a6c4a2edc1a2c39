"""Choosing, tuning, fitting and calibrating."""
