"""The estimators as scikit-learn pipelines."""
