"""Flows about the quality of models in service: labels, training/serving skew, staleness."""
