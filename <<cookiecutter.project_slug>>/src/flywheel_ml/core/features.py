"""Encodes contract columns as the two input arrays of a model, identically in training, batch scoring and the API."""

import ast
import inspect
import itertools
import keyword
import re
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from flywheel_ml.core.contract import (
    MISSING,
    SCORE_COLUMNS,
    Column,
    Columns,
    Contract,
    DatetimeFeature,
    columns_from_rows,
    is_missing,
)
from flywheel_ml.utils.config_model import find_duplicates, suggest
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import sha256_text

Feature = Callable[..., np.ndarray]
"""A function of columns, float [n_rows] each, that names them as its parameters; returns float [n_rows]."""

FeatureFunction = Callable[[Columns], np.ndarray]

MAX_WORDS = 200
"""Words of a text that the model sees; a batch allocates as many words per row as its longest text has."""
_WORD = re.compile(r"\w+")


class Inputs(NamedTuple):
    """Model inputs: `num` float32 [n_rows, n_numeric] and `cat` object (str) [n_rows, n_categorical]."""

    num: np.ndarray
    cat: np.ndarray


# Created once: for a few rows they cost as much as the computation itself.
_DAYS, _MONTHS, _YEARS = (np.dtype(f"datetime64[{unit}]") for unit in "DMY")
_DAY, _MINUTE, _MONTH = np.timedelta64(1, "D"), np.timedelta64(1, "m"), np.timedelta64(1, "M")
_MONDAY, _JANUARY, _START = np.datetime64("1970-01-05"), np.datetime64("1970-01"), np.datetime64("2000-01-01")


def _hour(times: np.ndarray) -> np.ndarray:
    minutes = (times - times.astype(_DAYS)) / _MINUTE
    hours: np.ndarray = minutes / 60
    return hours


def _weekday(times: np.ndarray) -> np.ndarray:
    weekday: np.ndarray = np.mod((times.astype(_DAYS) - _MONDAY) / _DAY, 7)
    return weekday


def _month(times: np.ndarray) -> np.ndarray:
    month: np.ndarray = np.mod((times.astype(_MONTHS) - _JANUARY) / _MONTH, 12) + 1
    return month


def _day(times: np.ndarray) -> np.ndarray:
    day: np.ndarray = (times.astype(_DAYS) - times.astype(_MONTHS)) / _DAY + 1
    return day


def _year(times: np.ndarray) -> np.ndarray:
    """Days since the start of the year."""
    days: np.ndarray = (times - times.astype(_YEARS)) / _DAY
    return days


def _elapsed(times: np.ndarray) -> np.ndarray:
    days: np.ndarray = (times - _START) / _DAY
    return days


def _cycle(
    name: str, of: Callable[[np.ndarray], np.ndarray], period: float
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {
        f"{name}_sin": lambda times: np.sin(of(times) * (2 * np.pi / period)),
        f"{name}_cos": lambda times: np.cos(of(times) * (2 * np.pi / period)),
    }


DATETIME_FEATURES: dict[DatetimeFeature, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "hour": {"hour": _hour},
    "weekday": {"weekday": _weekday},
    "month": {"month": _month},
    "day": {"day": _day},
    "hour_cycle": _cycle("hour", _hour, 24),
    "weekday_cycle": _cycle("weekday", _weekday, 7),
    "year_cycle": _cycle("year", _year, 365.2425),
    "elapsed": {"elapsed": _elapsed},
}
"""The features that each key of `datetime_features` makes from a datetime column.

Hour of day [0, 24) with minutes as fraction, weekday 0 (Monday) to 6, month 1 to 12, day of month 1 to 31; sine and
cosine of hour, weekday and day of year; days since 2000. For a column other than the row's time, `elapsed` is the
days from the column to that time.
"""


def tokenize(text: str) -> str:
    """The words of a text in lower case, the first `MAX_WORDS`, one space between; MISSING for none, or itself.

    Everything that depends on language, library or locale happens here; the ONNX graph only splits at spaces.
    """
    return " ".join(itertools.islice((found.group().lower() for found in _WORD.finditer(text)), MAX_WORDS)) or MISSING


class Featurizer:
    """Turns `Columns` into `Inputs`, in an order fixed by the contract and the table of derived features.

    Raises:
        ConfigError: a derived feature takes a column that is not an input of the contract, or two
            features have one name.
    """

    def __init__(self, contract: Contract, features: Sequence[Feature] = ()) -> None:
        inputs = contract.inputs
        time = contract.time.name if contract.time else ""
        self._numeric = [c.name for c in inputs if c.is_numeric]
        self._datetimes = [
            (f"{c.name}.{name}", c.name, time if part == "elapsed" and c.name != time else "", function)
            for c in inputs
            if c.type == "datetime"
            for part in c.datetime_features
            for name, function in DATETIME_FEATURES[part].items()
        ]
        self._strings = [c for c in inputs if c.type == "string"]
        self._derived: list[tuple[Feature, list[str]]] = []
        names = {to_parameter_name(c.name): c.name for c in inputs}
        for function in features:
            needs = list(inspect.signature(function).parameters)
            if absent := [need for need in needs if need not in names]:
                raise ConfigError(
                    f"features.py: '{_feature_name(function)}' takes '{absent[0]}', "
                    "which is not an input column of contract.yaml; " + suggest(absent[0], list(names))
                )
            self._derived.append((function, [names[need] for need in needs]))
        made = [*(name for name, *_ in self._datetimes), *(_feature_name(function) for function, _ in self._derived)]
        taken = [*made, *(column.name for column in inputs)]
        if twice := find_duplicates(taken):
            raise ConfigError(
                f"two features are called '{twice[0]}': columns of contract.yaml, features of its datetimes "
                "(<column>.hour and the like) and functions of features.py; rename one"
            )
        if reserved := [name for name in made if name in SCORE_COLUMNS]:
            raise ConfigError(f"features.py: scoring adds a column called '{reserved[0]}'; rename the function")
        used = {need for _, column, time, _ in self._datetimes for need in (column, time)}
        used.update(need for _, needs in self._derived for need in needs)
        self._needed = [column for column in inputs if column.name in used]
        self._makers = [
            *(_build_datetime_feature(column, time, function) for _, column, time, function in self._datetimes),
            *(_build_derived_feature(function, needs) for function, needs in self._derived),
        ]
        """The function of each feature that is not a numeric column: columns → float [n_rows]."""
        self._take = itemgetter(*self._numeric) if self._numeric else tuple
        self.unused: frozenset[str] = frozenset(c.name for c in inputs if c.type == "datetime" and c.name not in used)
        """Input columns without a feature: datetimes with no `datetime_features`, such as the row's time."""
        self.numeric: tuple[str, ...] = (*self._numeric, *made)
        self.categorical: tuple[Column, ...] = tuple(self._strings)

    @property
    def definitions(self) -> dict[str, str]:
        """Derived feature → sha256 of what it computes, see `hash_definition`."""
        return {_feature_name(function): hash_definition(function) for function, _ in self._derived}

    @property
    def derived(self) -> dict[str, FeatureFunction]:
        """Derived feature → its function of columns."""
        makers = self._makers[len(self._datetimes) :]
        return {_feature_name(function): make for (function, _), make in zip(self._derived, makers, strict=True)}

    def encode(self, columns: Columns) -> Inputs:
        """Encode n_rows; each row is encoded independently.

        A number that float32 cannot hold, such as an infinity, counts as missing.
        """
        n_rows = len(next(iter(columns.values())))
        num = np.empty((n_rows, len(self.numeric)), dtype=np.float32)
        with np.errstate(all="ignore"):
            for at, name in enumerate(self._numeric):
                num[:, at] = columns[name]
            self._fill_features(num, columns)
        cat = np.empty((n_rows, len(self._strings)), dtype=object)
        for position, column in enumerate(self._strings):
            values = columns[column.name]
            if column.free_text:
                known = {value: MISSING if value is None else tokenize(value) for value in set(values.tolist())}
                cat[:, position] = [known[value] for value in values.tolist()]
                continue
            cat[:, position] = np.where(is_missing(values), MISSING, values) if None in values.tolist() else values
        return Inputs(num, cat)

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Inputs:
        """Encode n_rows of Python values, None or no key for missing; bit-identical to `encode`.

        For few rows, where the cost of NumPy is per call, it makes as few calls as possible.
        """
        columns = columns_from_rows(self._needed, rows)
        names = [column.name for column in self._strings]
        cat = np.array(
            [[MISSING if (text := row.get(name)) is None else text for name in names] for row in rows], dtype=object
        ).reshape(len(rows), len(names))
        for position, column in enumerate(self._strings):
            if column.free_text:
                cat[:, position] = [tokenize(text) for text in cat[:, position].tolist()]
        num = np.empty((len(rows), len(self.numeric)), dtype=np.float32)
        with np.errstate(all="ignore"):
            if wide := len(self._numeric):
                num[:, :wide] = np.array(self._extract_numbers(rows), dtype=np.float64).reshape(-1, wide)
            self._fill_features(num, columns)
        return Inputs(num, cat)

    def drift_features(self, columns: Columns) -> dict[str, np.ndarray]:
        """Features besides the contract's columns that are checked for drift, float64 [n_rows] each.

        These are the derived features and the days from a datetime to its row's time. Calendar features differ between
        any two windows.
        """
        wanted = {
            *(name for name, _, time, _ in self._datetimes if time),
            *(_feature_name(function) for function, _ in self._derived),
        }
        names = self.numeric[len(self._numeric) :]
        with np.errstate(all="ignore"):
            made = {
                name: np.asarray(make(columns), dtype=np.float32).astype(np.float64)
                for name, make in zip(names, self._makers, strict=True)
                if name in wanted
            }
        return {name: np.where(np.isinf(values), np.nan, values) for name, values in made.items()}

    def _extract_numbers(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        try:
            return list(map(self._take, rows))
        except KeyError:  # A value is missing from a row.
            return [[row.get(name) for name in self._numeric] for row in rows]

    def _fill_features(self, num: np.ndarray, columns: Columns) -> None:
        """Fill in the computed features after the numeric columns."""
        for at, make in enumerate(self._makers, start=len(self._numeric)):
            num[:, at] = make(columns)
        num[np.isinf(num)] = np.nan


def _build_datetime_feature(column: str, time: str, function: Callable[[np.ndarray], np.ndarray]) -> FeatureFunction:
    if time:
        return lambda columns: (columns[time] - columns[column]) / _DAY
    return lambda columns: function(columns[column])


def _build_derived_feature(function: Feature, needs: Sequence[str]) -> FeatureFunction:
    return lambda columns: function(*[columns[need] for need in needs])


def to_parameter_name(column: str) -> str:
    """The parameter name of a column in derived features: its name, with "_" for characters invalid in Python."""
    # Python reads names in this normal form, in which "ﬁ" is "fi".
    normal = unicodedata.normalize("NFKC", column)
    name = "".join(letter if f"_{letter}".isidentifier() else "_" for letter in normal)
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"_{name}"


def hash_definition(function: Feature) -> str:
    """sha256 of a function's code, ignoring comments, docstrings and layout.

    It includes the functions and constants of its module that the function uses.
    """
    module = inspect.getmodule(function)
    beside = _definitions_by_name(ast.parse(inspect.getsource(module))) if module else {}
    waiting, sources = _definitions_by_name(ast.parse(textwrap.dedent(inspect.getsource(function)))), dict[str, str]()
    while waiting:
        name, node = waiting.popitem()
        sources[name] = ast.unparse(_without_docstrings(node))
        used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        waiting |= {name: beside[name] for name in used & beside.keys() - sources.keys()}
    return sha256_text("\n".join(sources[name] for name in sorted(sources)))


def _definitions_by_name(module: ast.Module) -> dict[str, ast.stmt]:
    """Map the names that a module defines to their statements, without imports."""
    found: dict[str, ast.stmt] = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {inner.id: node for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}
    return found


def _without_docstrings(tree: ast.stmt) -> ast.stmt:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _feature_name(function: Feature) -> str:
    return str(function.__name__)
