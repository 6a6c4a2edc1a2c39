"""Contract, bundle, parameters and project: the definitions that every other part uses."""
