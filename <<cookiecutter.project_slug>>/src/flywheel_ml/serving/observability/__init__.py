"""Metrics, traces and the backlog of the log."""
