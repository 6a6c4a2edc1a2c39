"""One column of an Arrow table, judged by the contract as a whole: the rules and words of the API's request model."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..columnar import array_of, fixed, lengths, moments, numbers, present, texts, truths
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
        return faults.fault(self.column.name, self._rule, self._first, value=self._shown())

    def _shown(self) -> Any:
        import pyarrow as pa

        value = self._values.slice(self._first, 1)
        if self.column.type != "datetime" or pa.types.is_large_string(value.type):
            told = value[0].as_py()
            return None if told != told else told  # noqa: PLR0124 # NaN counts as null
        moment_of = moments(value)[0]
        # One beyond what Python's own can tell is a text too.
        return None if np.isnat(moment_of) else str(moment_of)

    def logged(self) -> Any:
        """The values as `pyarrow.Array` of the contract's own type, null where they are missing."""
        import pyarrow as pa

        if self.column.type in ("boolean", "string"):
            return self._values
        array = array_of(self.array)
        # Every integer is a whole number that float64 holds.
        return array.cast(pa.int64()) if self.column.type == "integer" else array


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

    if not pa.types.is_dictionary(values.type):
        return int(lengths(values).sum())
    places = values.indices.cast(pa.int64())
    return int(lengths(values.dictionary)[fixed(places, "i8")[present(places)]].sum())


def _array(column: Column, values: Any) -> np.ndarray:
    import pyarrow as pa

    if column.is_numeric:
        array = numbers(values)
        return _told_apart(values, array) if column.type == "integer" else array
    if column.type == "string":
        return texts(values)
    if pa.types.is_large_string(values.type):
        return as_array(column, [_moment_or_none(text) for text in values.to_pylist()])
    array = moments(values)
    # Nanoseconds cannot tell the first year nor the last, and lie between them.
    array = array.astype("M8[us]") if array.dtype == "M8[ns]" else array
    return np.where((array >= FIRST) & (array <= LAST), array, np.datetime64("NaT")).astype("M8[us]")


def _told_apart(values: Any, array: np.ndarray) -> np.ndarray:
    """The integers beyond the limit that float64 rounded to it are moved beyond it again."""
    for at in np.flatnonzero(np.abs(array) == INTEGER_LIMIT):
        if abs(values[int(at)].as_py()) > INTEGER_LIMIT:
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
        yield gaps & present(values), NO_MOMENT
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
    import pyarrow.compute as pc

    if column.categories and not column.unseen:
        known = array_of(np.array([*column.categories, None], dtype=object))
        yield ~truths(pc.is_in(values, value_set=known)), f"must be one of {_either(column.categories)}"
        return
    characters = pc.utf8_length(values)
    yield present(values) & (fixed(characters, "i8") > MAX_TEXT), f"must have at most {MAX_TEXT} characters"
    yield truths(pc.is_in(values, value_set=array_of(np.array([MISSING], dtype=object)))), RESERVED
    if column.role == "id":
        yield truths(pc.match_substring(values, "\x00")), "must not contain a NUL character"


def _either(names: Sequence[str | int]) -> str:
    """A list as pydantic writes it."""
    *others, last = (repr(name) for name in names)
    return f"{', '.join(others)} or {last}" if others else last
