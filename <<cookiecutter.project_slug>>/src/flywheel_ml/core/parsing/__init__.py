"""Parses cells by the contract's rules for a column; files, requests and labels share this one definition.

`parse_value` reads one value, `parsing.series.parse_series` a column of a frame; both give the same answer for the
same cell. A cell is missing if it is null, NaN, an infinity, an empty text, one of the column's `na_values`, or, but
for columns of texts, one of the usual `MARKERS`.
"""

from flywheel_ml.core.parsing.grammar import MARKERS, Grammar, build_grammar
from flywheel_ml.core.parsing.value import TYPE_MESSAGES, parse_value

__all__ = ["MARKERS", "TYPE_MESSAGES", "Grammar", "build_grammar", "parse_value"]
