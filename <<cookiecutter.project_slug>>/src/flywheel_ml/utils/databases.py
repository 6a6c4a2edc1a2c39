"""What every part that opens a database agrees on."""

DEFAULT_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
"""What an address that names no driver is opened with; SQLAlchemy would choose a library that is not here."""
