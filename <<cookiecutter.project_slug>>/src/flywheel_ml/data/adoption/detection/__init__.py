"""How the cells of a column are written: its contract type, its `Parse` and its time zone, found from a sample.

Nothing here reads cells by rules of its own: a way of writing is a candidate `Column`, and what `parse_series` makes of
the sample decides.
"""
