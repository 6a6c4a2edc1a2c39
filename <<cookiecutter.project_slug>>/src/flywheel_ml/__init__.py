"""The library of a machine-learning project on one table: data, model, serving, monitoring, flows."""
