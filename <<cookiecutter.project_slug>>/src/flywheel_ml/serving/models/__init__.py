"""The model that serves, and how it is replaced."""
