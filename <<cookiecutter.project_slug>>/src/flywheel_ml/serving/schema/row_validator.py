"""Validates rows that are written as in the user's own table, and converts them to the contract's names and values.

A field may have its name in the user's file. Columns that the model does not use are dropped. A value may be written
as in the file; see `parsing.parse_value`.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.parsing import build_grammar, parse_value
from flywheel_ml.core.parsing.rules import IS_BROKEN, REQUIRED, build_value_rules
from flywheel_ml.serving.errors import validation_errors
from flywheel_ml.utils import timestamps
from flywheel_ml.utils.config_model import suggest

_UNNAMED = re.compile("column_([0-9]+)")
"""The name that `adopt` gives to a column without a name, by its position."""
MAX_ERRORS = 1000
"""Validation stops after this number of errors, because finding a million would block other requests."""

CellReader = Callable[[Any], Any]


class RowField(NamedTuple):
    """The contract's column of a field, and the reader of its value (None: the field is dropped)."""

    name: str
    read: CellReader | None


class RowValidator:
    """Validates rows of one contract.

    Args:
        contract: columns of a row.
        optional: names of input columns that may be missing although they are not nullable in the contract.

    Attributes:
        columns: columns that a row may have, by name.
        required: names of columns that a row must have.
        cell_readers: a reader of values for each column.
    """

    def __init__(self, contract: Contract, optional: Collection[str] = ()) -> None:
        self.columns = {column.name: column for column in (*contract.inputs, *([contract.id] if contract.id else []))}
        self.required = frozenset(
            column.name for column in contract.inputs if not column.nullable and column.name not in optional
        )
        self.cell_readers = {
            name: build_cell_reader(column, name in self.required) for name, column in self.columns.items()
        }
        self._target = contract.target
        others = [column for column in contract.columns if column.role != "target"]
        own = {column.name: RowField(column.name, self.cell_readers.get(column.name)) for column in others}
        self._fields = {alias: own[column.name] for column in others for alias in _list_aliases(column)} | own

    def find_field(self, name: str) -> RowField:
        """Find the column of a field by its name.

        Raises:
            ValueError: there is none; the message is the rule that the field breaks.
        """
        found = self._find(name)
        if found is None:
            raise ValueError(self._describe_unknown(name))
        return found

    def map_columns(self, given: Sequence[str]) -> dict[str, str]:
        """Map the contract's column names to the names in a table; dropped columns are left out.

        Raises:
            Problem: 422 for an unknown or duplicate column, or if no column is left.
        """
        found: dict[str, str] = {}
        for own in given:
            try:
                name, read = self.find_field(own)
                if name in found:
                    raise ValueError(_describe_duplicate(name))
            except ValueError as error:
                raise validation_errors.build_invalid_input_problem(
                    1, [validation_errors.build_error_detail(own, str(error))]
                ) from None
            if read is not None:
                found[name] = own
        if not found:
            raise validation_errors.build_invalid_input_problem(
                1, [validation_errors.build_error_detail("instances", "must have at least 1 column of the contract")]
            )
        return found

    def validate(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the rows with the contract's names and values: dates as ISO 8601 texts, None for missing values.

        Raises:
            Problem: 422 that lists the first errors.
        """
        found: list[_RowError] = []
        read: list[dict[str, Any]] = []
        for at, row in enumerate(rows):
            if isinstance(row, Mapping):
                read.append(self._row(row, at, found))
            else:
                found.append(_RowError(at, None, "must be an object", {"value": row}))
            if len(found) >= MAX_ERRORS:
                break
        if found:
            listed = [
                validation_errors.build_error_detail(
                    one.field, one.rule or self._describe_unknown(one.field or ""), one.at, **one.value
                )
                for one in found[: validation_errors.MAX_LISTED_ERRORS]
            ]
            raise validation_errors.build_invalid_input_problem(len(found), listed, is_complete=len(found) < MAX_ERRORS)
        return read

    def _row(self, row: Mapping[str, Any], at: int, found: "list[_RowError]") -> dict[str, Any]:
        values: dict[str, Any] = {}
        fields = self._fields
        for given, value in row.items():
            field = fields.get(given) or self._find(given)
            if field is None:
                found.append(_RowError(at, given, "", {"value": value}))
                continue
            name, read = field
            if read is None:
                continue
            try:
                if name in values:
                    raise ValueError(_describe_duplicate(name))
                values[name] = None
                values[name] = read(value)
            except ValueError as error:
                found.append(_RowError(at, given, str(error), {"value": value}))
        if not values.keys() >= self.required:
            gone = self.required - values.keys()
            found += [_RowError(at, name, REQUIRED, {}) for name in self.columns if name in gone]
        return values

    def _find(self, name: str) -> RowField | None:
        return self._fields.get(name) or self._fields.get(unicodedata.normalize("NFC", name).strip())

    def _describe_unknown(self, name: str) -> str:
        if name in (self._target.name, self._target.source):
            return "is the target, which the model predicts; leave it out, and send it to /feedback once it is known"
        return f"unknown field; {suggest(name, list(self.columns))}"


class _RowError(NamedTuple):
    """An error of a row; the rule of an unknown field is empty, because its message is slow to build."""

    at: int
    field: str | None
    rule: str
    value: Mapping[str, Any]


def _list_aliases(column: Column) -> Iterator[str]:
    """Return the names of a column in the user's file, or in pandas, if they differ from the contract's."""
    if column.source:
        yield column.source
    elif found := _UNNAMED.fullmatch(column.name):
        yield from ("", f"Unnamed: {int(found[1]) - 1}")


def _describe_duplicate(name: str) -> str:
    return f"is a duplicate of the column '{name}'; send it once"


def build_cell_reader(column: Column, required: bool) -> CellReader:
    """Build a function that converts a JSON value to the contract's; it raises ValueError with the broken rule."""
    read = _build_reader(column, required)
    # Fast checks for the most common values.
    if build_grammar(column).sentinels:
        return read
    if column.categories:
        return _build_category_reader(frozenset(column.categories), read)
    if column.type in ("float", "integer"):
        return (_build_float_reader if column.type == "float" else _build_integer_reader)(*column.limits, read)
    if column.type == "datetime":
        return _build_datetime_reader(read)
    return read


def _build_reader(column: Column, required: bool) -> CellReader:
    rules = build_value_rules(column)

    def read(value: Any) -> Any:
        parsed = parse_value(value, column)
        if parsed is None:
            if required:
                raise ValueError(REQUIRED)
            return None
        for rule in rules:
            if IS_BROKEN[rule.kind](parsed, rule.limit):
                raise ValueError(rule.message)
        return parsed.isoformat() if isinstance(parsed, datetime) else parsed

    return read


def _build_category_reader(known: Collection[Any], read: CellReader) -> CellReader:
    def read_category(value: Any) -> Any:
        return value if type(value) is str and value in known else read(value)

    return read_category


def _build_datetime_reader(read: CellReader) -> CellReader:
    def read_datetime(value: Any) -> Any:
        # The format of pandas.
        if type(value) is str and len(value) == 23 and value[19:] == ".000" and timestamps.parse_isoformat(value[:19]):
            return value[:19]
        return read(value)

    return read_datetime


def _build_float_reader(low: float, high: float, read: CellReader) -> CellReader:
    def read_float(value: Any) -> Any:
        return value if type(value) is float and low <= value <= high else read(value)

    return read_float


def _build_integer_reader(low: float, high: float, read: CellReader) -> CellReader:
    def read_integer(value: Any) -> Any:
        if type(value) is int and low <= value <= high:
            return value
        return int(value) if type(value) is float and low <= value <= high and value.is_integer() else read(value)

    return read_integer
