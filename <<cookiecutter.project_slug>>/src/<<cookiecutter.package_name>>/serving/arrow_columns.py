"""One column of an Arrow table, judged by the contract as a whole: the rules and words of the API's request model."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..contract import INTEGER_LIMIT, MISSING, NO_MOMENT, Column, as_array, missing, moment
from . import faults
from .problems import Problem
from .schemas import MAX_TEXT, RESERVED
from .tabular import refused

FIRST, LAST = np.datetime64("0001-01-01"), np.datetime64("9999-12-31T23:59:59")
CALLED = {
    "float": "a number",
    "integer": "a number",
    "boolean": "a boolean",
    "string": "a string",
    "datetime": "a timestamp, a date, or a string in ISO 8601",
}

# Nothing of pyarrow is imported before the first such table comes: it takes 40 MB and a third of a second.


class Checked:
    """A column of n_rows.

    Args:
        column: what the contract says of it.
        values: `pyarrow.ChunkedArray`; NaN among numbers counts as missing.
        limit: most bytes that its texts may take up once none is shared.

    Attributes:
        array: as `Columns` has it.
        broken: how many rows break a rule, the first rule that any breaks.

    Raises:
        Problem: 413 beyond the limit, 422 for a type that the column cannot have.
    """

    def __init__(self, column: Column, values: Any, limit: int) -> None:
        self.column = column
        self._values = _plain(column, values.combine_chunks(), limit)
        self.array = _array(column, self._values)
        self.broken, self._first, self._rule = 0, 0, ""
        for rows, rule in _broken(column, self._values, self.array):
            if rows.any():
                self.broken, self._first, self._rule = int(rows.sum()), int(rows.argmax()), rule
                break

    def fault(self) -> faults.Details:
        """The first row that breaks a rule."""
        value = self._values.slice(self._first, 1).to_numpy(zero_copy_only=False)[0]
        return faults.fault(self.column.name, self._rule, self._first, value=_shown(value))

    def logged(self) -> Any:
        """The values as `pyarrow.Array` of the contract's own type, null where they are missing."""
        import pyarrow as pa

        if self.column.type == "integer":
            # Every one of them is a whole number that float64 holds.
            return pa.array(self.array, from_pandas=True).cast(pa.int64())
        if self.column.is_numeric and self.column.type != "boolean":
            return pa.array(self.array, from_pandas=True)
        return pa.array(self.array) if self.column.type == "datetime" else self._values


def _shown(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        # One beyond what Python's own can tell is a text too.
        return None if np.isnat(value) else str(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(column: Column, values: Any, limit: int) -> Any:
    """Values of a type that the column can have, dictionaries resolved, every text of its own."""
    import pyarrow as pa

    kinds = pa.types
    kind = values.type.value_type if kinds.is_dictionary(values.type) else values.type
    if kinds.is_null(kind):
        natural = {"boolean": pa.bool_(), "string": pa.large_string(), "datetime": pa.timestamp("us")}
        return pa.nulls(len(values), natural.get(column.type, pa.float64()))
    is_text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
    is_number = kinds.is_integer(kind) or kinds.is_floating(kind)
    fitting = {
        "float": is_number,
        "integer": is_number,
        "boolean": kinds.is_boolean(kind),
        "string": is_text,
        "datetime": is_text or kinds.is_timestamp(kind) or kinds.is_date(kind),
    }
    if column.role == "id" and column.type == "integer":
        fitting["integer"] = kinds.is_integer(kind)
    if not fitting[column.type]:
        raise refused(column.name, f"must be {CALLED[column.type]}", value=str(kind))
    if not is_text:
        return values.dictionary_decode() if kinds.is_dictionary(values.type) else values
    if _text_bytes(values) > limit:
        raise Problem(413, "body-too-large", f"the texts of '{column.name}' take up more than {limit} bytes")
    if kinds.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.large_string())


def _text_bytes(values: Any) -> int:
    """How many bytes an array of texts has once none is shared: a dictionary, or a view, may repeat a long one."""
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        places = values.indices.drop_null().to_numpy(zero_copy_only=False)
        return int(_lengths(values.dictionary)[places].sum())
    return int(_lengths(values).sum())


def _lengths(texts: Any) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string_view(texts.type):
        # Sixteen bytes for each text, of which the first four are its length.
        views = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset * 4 : (texts.offset + len(texts)) * 4 : 4]
        return np.where(texts.is_valid().to_numpy(zero_copy_only=False), views, 0).astype(np.int64)
    lengths: np.ndarray = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def _array(column: Column, values: Any) -> np.ndarray:
    import pyarrow as pa

    array: np.ndarray
    if column.is_numeric:
        array = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return _told_apart(values, array) if column.type == "integer" else array
    if column.type == "datetime" and pa.types.is_large_string(values.type):
        return as_array(column, [_moment_or_none(text) for text in values.to_pylist()])
    array = values.to_numpy(zero_copy_only=False)
    if column.type == "datetime":
        # Nanoseconds cannot tell the first year nor the last, and lie between them.
        array = array.astype("datetime64[us]") if array.dtype == "datetime64[ns]" else array
        inside = (array >= FIRST) & (array <= LAST)
        return np.where(inside, array, np.datetime64("NaT")).astype("datetime64[us]")
    return array


def _told_apart(values: Any, array: np.ndarray) -> np.ndarray:
    """The integers beyond the limit that float64 rounded to it are moved beyond it again."""
    edge = np.flatnonzero(np.abs(array) == INTEGER_LIMIT)
    if not edge.size:
        return array
    array = array.copy()
    for at in edge:
        if abs(values[at].as_py()) > INTEGER_LIMIT:
            array[at] *= 2
    return array


def _moment_or_none(text: str | None) -> Any:
    try:
        return None if text is None else moment(text)
    except ValueError:
        return None


def _broken(column: Column, values: Any, array: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Which rows break a rule, bool [n_rows], and the rule."""
    gaps = missing(array)
    if column.type == "datetime":
        yield gaps & values.is_valid().to_numpy(zero_copy_only=False), NO_MOMENT
    if not column.nullable and column.role != "id":
        yield gaps, "must not be null"
    if column.type in ("float", "integer"):
        low, high = column.limits
        if column.type == "float":
            yield np.isinf(array), "must be a finite number"
        else:
            yield ~gaps & (array != np.floor(array)), "must be an integer"
            low, high = np.ceil(low), np.floor(high)
        yield array < low, f"must be >= {faults.number(low)}"
        yield array > high, f"must be <= {faults.number(high)}"
    elif column.type == "string":
        yield from _broken_texts(column, values)


def _broken_texts(column: Column, values: Any) -> Iterator[tuple[np.ndarray, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    def rows(found: Any) -> np.ndarray:
        return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False))

    if column.categories and not column.unseen:
        known = pa.array([*column.categories, None], pa.large_string())
        yield ~rows(pc.is_in(values, value_set=known)), f"must be one of {_either(column.categories)}"
        return
    yield rows(pc.greater(pc.utf8_length(values), MAX_TEXT)), f"must have at most {MAX_TEXT} characters"
    yield rows(pc.equal(values, MISSING)), RESERVED
    if column.role == "id":
        yield rows(pc.match_substring(values, "\x00")), "must not contain a NUL character"


def _either(names: Sequence[str | int]) -> str:
    """A list as pydantic writes it."""
    *others, last = (repr(name) for name in names)
    return f"{', '.join(others)} or {last}" if others else last
