"""Defaults for every part that opens a database."""

DEFAULT_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
"""Drivers for URLs that name none; SQLAlchemy's default driver is not installed."""
