"""One reader for tables of any format: text, JSON, Parquet, Arrow, a SQL query. `reading.open_table` is the way in."""
