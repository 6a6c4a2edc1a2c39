"""Selects, tunes, fits and calibrates the model."""
