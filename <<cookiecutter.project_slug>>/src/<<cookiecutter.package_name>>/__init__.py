"""A machine-learning system on one table: data, model, serving, monitoring, and the flows that turn them."""
