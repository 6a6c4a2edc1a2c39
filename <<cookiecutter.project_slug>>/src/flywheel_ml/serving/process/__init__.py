"""Processes: supervisor, workers, connections."""
