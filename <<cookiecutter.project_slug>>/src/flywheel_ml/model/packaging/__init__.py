"""Converts a fitted pipeline to a bundle."""
