"""Reads one column of an Arrow table and validates it by the contract.

Numbers, booleans and timestamps are validated as arrays. Other columns are read like JSON, each distinct value once.
The first invalid value is read like JSON as well, to report the rule that it breaks.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from flywheel_ml.core.contract import INTEGER_LIMIT, Column, is_missing, to_array
from flywheel_ml.core.parsing import TYPE_MESSAGES, build_grammar
from flywheel_ml.core.parsing.arrow_numpy import (
    text_lengths,
    to_arrow,
    to_datetimes,
    to_fixed_width,
    to_floats,
    valid_mask,
)
from flywheel_ml.core.parsing.rules import IS_BROKEN, REQUIRED, build_value_rules
from flywheel_ml.serving.codecs.tabular import build_field_problem
from flywheel_ml.serving.errors import validation_errors
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.schema.row_validator import RowValidator

MIN_DATETIME, MAX_DATETIME = np.datetime64("0001-01-01"), np.datetime64("9999-12-31T23:59:59")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# pyarrow is imported with the first Arrow request, because it takes 40 MB and a third of a second.


class CheckedColumn:
    """A validated column of n_rows.

    Args:
        validator: how values are read.
        given: the column's name in the request.
        name: the column's name in the contract.
        values: `pyarrow.ChunkedArray`; NaN in numeric columns counts as missing.
        limit: maximum bytes of its texts once shared ones are copied.

    Attributes:
        array: the values as in `Columns`.
        invalid_rows: number of rows that break a rule.

    Raises:
        Problem: 413 beyond the limit, 422 for an Arrow type that does not fit the column.
    """

    def __init__(self, validator: RowValidator, given: str, name: str, values: Any, limit: int) -> None:
        self.column = validator.columns[name]
        self._given = given
        self._read_cell = validator.cell_readers[name]
        self._values = _to_plain_type(given, self.column, values.combine_chunks(), limit)
        self._texts: Any = None
        is_required = name in validator.required
        if _is_native(self.column, self._values.type):
            self.array = _to_array(self.column, self._values)
            self._is_invalid = _find_invalid(self.column, self._values, self.array, is_required)
        else:
            self._read_distinct()
        self.invalid_rows = int(self._is_invalid.sum())

    def describe_first_error(self) -> validation_errors.ErrorDetail:
        """Return the error of the first invalid row."""
        first = int(self._is_invalid.argmax())
        (value,) = _to_python(self._values.slice(first, 1))
        rule = REQUIRED
        if value is not None:
            try:
                self._read_cell(value)
                rule = TYPE_MESSAGES[self.column.type]  # A timestamp outside the supported years.
            except ValueError as error:
                rule = str(error)
        return validation_errors.build_error_detail(self._given, rule, first, value=value)

    def to_log_array(self) -> Any:
        """Return the values as `pyarrow.Array` of the contract's type, null where they are missing."""
        import pyarrow as pa

        if self._texts is not None:
            return self._texts
        array = to_arrow(self.array)
        # Valid integers are exact in float64.
        kinds = {"integer": pa.int64(), "boolean": pa.bool_()}
        return array.cast(kinds[self.column.type]) if self.column.type in kinds else array

    def _read_distinct(self) -> None:
        coded = self._values.dictionary_encode()
        known: list[Any] = []
        wrong = []
        # The last position is for null.
        for value in (*_to_python(coded.dictionary), None):
            try:
                known.append(self._read_cell(value))
                wrong.append(False)
            except ValueError:
                known.append(None)
                wrong.append(True)
        at = np.where(valid_mask(coded.indices), to_fixed_width(coded.indices, "i4"), -1)
        distinct = to_array(self.column, known)
        self.array = distinct[at]
        self._is_invalid = np.array(wrong, dtype=np.bool_)[at]
        if self.column.type == "string":
            self._texts = to_arrow(distinct).take(to_arrow(at % len(known)))


def _to_plain_type(name: str, column: Column, values: Any, limit: int) -> Any:
    """Convert values to a plain type: dictionaries are resolved and shared texts are copied."""
    import pyarrow as pa

    kinds = pa.types
    is_coded = kinds.is_dictionary(values.type)
    kind = values.type.value_type if is_coded else values.type
    if kinds.is_null(kind):
        natural = {"boolean": pa.bool_(), "string": pa.large_string(), "datetime": pa.timestamp("us")}
        return pa.nulls(len(values), natural.get(column.type, pa.float64()))
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
        if _count_text_bytes(values) > limit:
            raise Problem(413, "body-too-large", f"the texts of '{name}' take up more than {limit} bytes")
        return (values.dictionary_decode() if is_coded else values).cast(pa.large_string())
    is_number = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
    if not (is_number or kinds.is_boolean(kind) or kinds.is_timestamp(kind) or kinds.is_date(kind)):
        raise build_field_problem(name, TYPE_MESSAGES[column.type], value=str(kind))
    values = values.dictionary_decode() if is_coded else values
    return values.cast(pa.float64()) if kinds.is_decimal(kind) else values


def _count_text_bytes(values: Any) -> int:
    """Count the bytes of an array of texts without sharing; a dictionary or view may repeat a long text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_coded = pa.types.is_dictionary(values.type)
    each = text_lengths(values.dictionary).take(values.indices) if is_coded else text_lengths(values)
    return pc.sum(each).as_py() or 0


def _is_native(column: Column, kind: Any) -> bool:
    """Whether an array of this type can be validated as an array."""
    import pyarrow as pa

    if column.type in ("float", "integer"):
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    if column.type == "boolean":
        return bool(pa.types.is_boolean(kind))
    if column.type == "datetime":
        return bool(pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None))
    return False


def _to_array(column: Column, values: Any) -> np.ndarray:
    if column.is_numeric:
        array = to_floats(values)
        array[np.isinf(array)] = np.nan
        if column.type == "integer":
            array = _restore_out_of_range(values, array)
    else:
        array = to_datetimes(values)
        # Timestamps in nanoseconds cannot represent the first or last year, and always lie between them.
        array = array.astype("M8[us]") if array.dtype == "M8[ns]" else array
        array = np.where((array >= MIN_DATETIME) & (array <= MAX_DATETIME), array, np.datetime64("NaT")).astype(
            "M8[us]"
        )
    if sentinels := build_grammar(column).sentinels:
        array[np.isin(array, to_array(column, list(sentinels)))] = np.nan if column.is_numeric else "NaT"
    return array


def _restore_out_of_range(values: Any, array: np.ndarray) -> np.ndarray:
    """Move integers back beyond the limit if float64 rounded them to it."""
    for at in np.flatnonzero(np.abs(array) == INTEGER_LIMIT):
        if abs(values[int(at)].as_py()) > INTEGER_LIMIT:
            array[at] *= 2
    return array


def _find_invalid(column: Column, values: Any, array: np.ndarray, required: bool) -> np.ndarray:
    """Return which rows break a rule, bool [n_rows]."""
    gaps = is_missing(array)
    wrong = gaps & (required | valid_mask(values)) if column.type == "datetime" else gaps & required
    if column.type == "integer":
        wrong |= ~gaps & (array != np.floor(array))
    for rule in build_value_rules(column):  # For numbers, all rules are ranges.
        wrong |= IS_BROKEN[rule.kind](array, rule.limit)
    return wrong


def _to_python(values: Any) -> Sequence[Any]:
    """Return values as in JSON; timestamps become ISO 8601 texts with the offset of their time zone."""
    import pyarrow as pa

    if not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
        plain: list[Any] = values.to_pylist()
        return plain
    zone = _parse_zone(values.type.tz) if pa.types.is_timestamp(values.type) and values.type.tz else None
    return [_format_timestamp(value, zone) for value in to_datetimes(values)]


def _format_timestamp(value: np.datetime64, zone: tzinfo | None) -> str | None:
    if np.isnat(value):
        return None
    if zone is None:
        return str(value)
    try:
        return (
            (_EPOCH + timedelta(microseconds=int(value.astype("M8[us]").astype(np.int64)))).astimezone(zone).isoformat()
        )
    except OverflowError:
        return str(value)


def _parse_zone(name: str) -> tzinfo:
    if name[:1] in "+-":
        offset = datetime.fromisoformat(f"1970-01-01T00:00:00{name}").tzinfo
        assert offset is not None
        return offset
    return ZoneInfo(name)
