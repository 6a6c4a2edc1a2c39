"""The request schema of one model: validates rows and reads their values."""
