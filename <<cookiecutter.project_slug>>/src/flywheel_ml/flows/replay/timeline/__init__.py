"""The time of a table: periods, their parts, and what was known when."""
