"""The project: its data source, features, estimators, gates, flows and HTTP app."""
