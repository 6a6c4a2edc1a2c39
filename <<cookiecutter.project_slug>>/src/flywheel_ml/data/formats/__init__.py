"""One reader for tables of any format: text, JSON, Parquet, Arrow, a SQL query. `reading.opened` is the way in."""
