"""The request schema of one model: which rows it takes, and how values are read."""
