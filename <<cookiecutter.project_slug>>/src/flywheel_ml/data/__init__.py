"""Data stages: ingest the raw table, validate it, and split it into train, validation and test."""
