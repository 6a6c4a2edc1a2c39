"""Detects how the cells of a column are written: contract type, `Parse` and time zone, from a sample.

It has no parsing rules of its own: each candidate is a `Column`, and the result of `parse_series` on the sample
decides.
"""
