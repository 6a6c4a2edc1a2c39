"""MLflow: runs, versions, aliases and the stock model."""
