"""One column of an Arrow table, read and checked by the contract as a whole.

Numbers, booleans and timestamps are checked as arrays. Other values are read as in JSON, each distinct one once, and so
is every value that is refused, for the words of the refusal.
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
from flywheel_ml.serving.codecs.tabular import refused
from flywheel_ml.serving.errors import faults
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.schema.row_validator import RowValidator

FIRST, LAST = np.datetime64("0001-01-01"), np.datetime64("9999-12-31T23:59:59")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Nothing of pyarrow is imported before the first such table comes: it takes 40 MB and a third of a second.


class Checked:
    """A column of n_rows.

    Args:
        reader: how values are read.
        given: what the request calls the column.
        name: what the contract calls it.
        values: `pyarrow.ChunkedArray`; NaN among numbers counts as missing.
        limit: most bytes that its texts may take up once none is shared.

    Attributes:
        array: as `Columns` has it.
        broken: how many rows break a rule.

    Raises:
        Problem: 413 beyond the limit, 422 for a type that the column cannot have.
    """

    def __init__(self, reader: RowValidator, given: str, name: str, values: Any, limit: int) -> None:
        self.column = reader.columns[name]
        self._given = given
        self._read = reader.cells[name]
        self._values = _plain(given, self.column, values.combine_chunks(), limit)
        self._texts: Any = None
        is_required = name in reader.required
        if _is_native(self.column, self._values.type):
            self.array = _array(self.column, self._values)
            self._wrong = _wrong(self.column, self._values, self.array, is_required)
        else:
            self._read_distinct()
        self.broken = int(self._wrong.sum())

    def fault(self) -> faults.Details:
        """The first row that breaks a rule."""
        first = int(self._wrong.argmax())
        (value,) = _python_values(self._values.slice(first, 1))
        rule = REQUIRED
        if value is not None:
            try:
                self._read(value)
                rule = TYPE_MESSAGES[self.column.type]  # A timestamp beyond the calendar.
            except ValueError as error:
                rule = str(error)
        return faults.fault(self._given, rule, first, value=value)

    def logged(self) -> Any:
        """The values as `pyarrow.Array` of the contract's own type, null where they are missing."""
        import pyarrow as pa

        if self._texts is not None:
            return self._texts
        array = to_arrow(self.array)
        # Every integer is a whole number that float64 holds.
        kinds = {"integer": pa.int64(), "boolean": pa.bool_()}
        return array.cast(kinds[self.column.type]) if self.column.type in kinds else array

    def _read_distinct(self) -> None:
        coded = self._values.dictionary_encode()
        known: list[Any] = []
        wrong = []
        # The last place is that of null.
        for value in (*_python_values(coded.dictionary), None):
            try:
                known.append(self._read(value))
                wrong.append(False)
            except ValueError:
                known.append(None)
                wrong.append(True)
        at = np.where(valid_mask(coded.indices), to_fixed_width(coded.indices, "i4"), -1)
        distinct = to_array(self.column, known)
        self.array = distinct[at]
        self._wrong = np.array(wrong, dtype=np.bool_)[at]
        if self.column.type == "string":
            self._texts = to_arrow(distinct).take(to_arrow(at % len(known)))


def _plain(name: str, column: Column, values: Any, limit: int) -> Any:
    """Values of a plain type, dictionaries resolved, every text of its own."""
    import pyarrow as pa

    kinds = pa.types
    is_coded = kinds.is_dictionary(values.type)
    kind = values.type.value_type if is_coded else values.type
    if kinds.is_null(kind):
        natural = {"boolean": pa.bool_(), "string": pa.large_string(), "datetime": pa.timestamp("us")}
        return pa.nulls(len(values), natural.get(column.type, pa.float64()))
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
        if _text_bytes(values) > limit:
            raise Problem(413, "body-too-large", f"the texts of '{name}' take up more than {limit} bytes")
        return (values.dictionary_decode() if is_coded else values).cast(pa.large_string())
    is_number = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
    if not (is_number or kinds.is_boolean(kind) or kinds.is_timestamp(kind) or kinds.is_date(kind)):
        raise refused(name, TYPE_MESSAGES[column.type], value=str(kind))
    values = values.dictionary_decode() if is_coded else values
    return values.cast(pa.float64()) if kinds.is_decimal(kind) else values


def _text_bytes(values: Any) -> int:
    """How many bytes an array of texts has once none is shared: a dictionary, or a view, may repeat a long one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_coded = pa.types.is_dictionary(values.type)
    each = text_lengths(values.dictionary).take(values.indices) if is_coded else text_lengths(values)
    return pc.sum(each).as_py() or 0


def _is_native(column: Column, kind: Any) -> bool:
    """Whether an array of this type can be checked as a whole."""
    import pyarrow as pa

    if column.type in ("float", "integer"):
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    if column.type == "boolean":
        return bool(pa.types.is_boolean(kind))
    if column.type == "datetime":
        return bool(pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None))
    return False


def _array(column: Column, values: Any) -> np.ndarray:
    if column.is_numeric:
        array = to_floats(values)
        array[np.isinf(array)] = np.nan
        if column.type == "integer":
            array = _told_apart(values, array)
    else:
        array = to_datetimes(values)
        # Nanoseconds cannot tell the first year nor the last, and lie between them.
        array = array.astype("M8[us]") if array.dtype == "M8[ns]" else array
        array = np.where((array >= FIRST) & (array <= LAST), array, np.datetime64("NaT")).astype("M8[us]")
    if sentinels := build_grammar(column).sentinels:
        array[np.isin(array, to_array(column, list(sentinels)))] = np.nan if column.is_numeric else "NaT"
    return array


def _told_apart(values: Any, array: np.ndarray) -> np.ndarray:
    """The integers beyond the limit that float64 rounded to it are moved beyond it again."""
    for at in np.flatnonzero(np.abs(array) == INTEGER_LIMIT):
        if abs(values[int(at)].as_py()) > INTEGER_LIMIT:
            array[at] *= 2
    return array


def _wrong(column: Column, values: Any, array: np.ndarray, required: bool) -> np.ndarray:
    """Which rows break a rule, bool [n_rows]."""
    gaps = is_missing(array)
    wrong = gaps & (required | valid_mask(values)) if column.type == "datetime" else gaps & required
    if column.type == "integer":
        wrong |= ~gaps & (array != np.floor(array))
    for rule in build_value_rules(column):  # Of numbers, they are all about ranges.
        wrong |= IS_BROKEN[rule.kind](array, rule.limit)
    return wrong


def _python_values(values: Any) -> Sequence[Any]:
    """The values of an array as JSON would have them, timestamps as ISO 8601 texts with the offset of their zone."""
    import pyarrow as pa

    if not (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
        told: list[Any] = values.to_pylist()
        return told
    zone = _zone(values.type.tz) if pa.types.is_timestamp(values.type) and values.type.tz else None
    return [_text(value, zone) for value in to_datetimes(values)]


def _text(value: np.datetime64, zone: tzinfo | None) -> str | None:
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


def _zone(name: str) -> tzinfo:
    if name[:1] in "+-":
        offset = datetime.fromisoformat(f"1970-01-01T00:00:00{name}").tzinfo
        assert offset is not None
        return offset
    return ZoneInfo(name)
