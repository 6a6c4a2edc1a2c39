"""Detects missing-value markers in texts, and columns in which NA is a value."""

import polars as pl

from flywheel_ml.core.parsing.series import clean_texts
from flywheel_ml.data.adoption.detection.detected import TEXT, Detected, Hints

_NA = ("NA", "N/A")
_NO_VALUE = (*_NA, "NaN", "nan", "NULL", "null", "<NA>", "#N/A", "NaT", "\\N")
_MIN_CODE_SHARE, _MIN_CODES = 0.8, 3


def detect(cells: pl.Series, hints: Hints) -> Detected:
    """Detect missing markers in a column of texts; a marker such as NA is missing unless it is likely a value."""
    present = clean_texts(cells.drop_nulls())
    distinct = set(present.unique())
    found = [marker for marker in _NO_VALUE if marker in distinct]
    if not found:
        return TEXT
    why = _explain_na_value(cells, distinct, hints)
    kept = [marker for marker in found if why and (marker in _NA or cells.name in hints.keep_na)]
    gone = [marker for marker in found if marker not in kept]
    counts = {marker: int((present == marker).sum()) for marker in found}
    na = [f"'{marker}' in {counts[marker]:,} cells is a value: {why}" for marker in kept]
    na += [f"'{marker}' in {counts[marker]:,} cells is missing" for marker in gone]
    return TEXT.with_missing(gone)._replace(na="; ".join(na))


def _explain_na_value(cells: pl.Series, distinct: set[str], hints: Hints) -> str:
    if cells.name in hints.keep_na:
        return "you said so"
    if cells.name in hints.quoted:
        return "it is in quotes"
    if cells.null_count() or "" in distinct:
        return "the column has empty cells as well"
    others = [value for value in distinct if value not in _NO_VALUE]
    codes = sum(len(value) == 2 and value.isascii() and value.isupper() and value.isalpha() for value in others)
    if len(others) >= _MIN_CODES and codes >= _MIN_CODE_SHARE * len(others):
        return "the other values are codes of two letters"
    return ""
