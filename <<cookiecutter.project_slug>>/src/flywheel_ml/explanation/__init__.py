"""Explanations: the contribution of each column to a prediction."""
