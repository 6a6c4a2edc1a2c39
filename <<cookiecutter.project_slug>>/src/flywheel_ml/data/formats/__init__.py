"""Reads tables of any format: text, JSON, Parquet, Arrow, SQL. The entry point is `reading.open_table`."""
