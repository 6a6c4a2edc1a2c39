"""The models in service, and how they are replaced."""
