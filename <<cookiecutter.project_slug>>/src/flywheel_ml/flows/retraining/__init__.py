"""Retraining: the training steps in a copy of the project, on newer data, with a branch of git as the result."""
