"""From contract columns to the two arrays every model here takes: one way for training, batch, stream and API."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .contract import MISSING, Column, Columns, Contract, missing
from .derived import DERIVED
from .errors import ConfigError
from .files import sha256_text
from .strict import nearest

Derived = Callable[..., np.ndarray]


class Inputs(NamedTuple):
    """What the model sees: `num` float32 [n_rows, n_numeric] and `cat` object (str) [n_rows, n_categorical]."""

    num: np.ndarray
    cat: np.ndarray


def _hour(moment: np.ndarray) -> np.ndarray:
    minutes = (moment - moment.astype("datetime64[D]")) / np.timedelta64(1, "m")
    hours: np.ndarray = minutes / 60
    return hours


def _weekday(moment: np.ndarray) -> np.ndarray:
    days = (moment.astype("datetime64[D]") - np.datetime64("1970-01-05")) / np.timedelta64(1, "D")
    weekday: np.ndarray = np.mod(days, 7)
    return weekday


DATE_PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"hour": _hour, "weekday": _weekday}
"""What a datetime column is expanded into: hour of day [0, 24) with minutes as fraction, weekday 0 (Monday) to 6."""


class Featurizer:
    """Turns `Columns` into `Inputs`, in an order fixed by the contract and the table of derived features.

    Raises:
        ConfigError: a derived feature asks for a column that the contract does not have as an input.
    """

    def __init__(self, contract: Contract, derived: Sequence[Derived] = DERIVED) -> None:
        inputs = contract.inputs
        self._numeric: list[tuple[str, Column]] = [(c.name, c) for c in inputs if c.is_numeric]
        self._moments: list[Column] = [c for c in inputs if c.type == "datetime"]
        self._strings: list[Column] = [c for c in inputs if c.type == "string"]
        self._derived: list[tuple[Derived, list[str]]] = []
        names = [c.name for c in inputs]
        for function in derived:
            needs = list(inspect.signature(function).parameters)
            if absent := [need for need in needs if need not in names]:
                raise ConfigError(
                    f"derived.py: '{_name(function)}' takes '{absent[0]}', which is no input column of contract.yaml; "
                    + nearest(absent[0], names)
                )
            if _name(function) in names:
                raise ConfigError(
                    f"derived.py: '{_name(function)}' is also a column of contract.yaml; rename the function"
                )
            self._derived.append((function, needs))

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the columns of `Inputs.num`."""
        parts = [f"{c.name}.{part}" for c in self._moments for part in DATE_PARTS]
        return (*(name for name, _ in self._numeric), *parts, *(_name(function) for function, _ in self._derived))

    @property
    def categorical(self) -> tuple[Column, ...]:
        """The contract columns behind `Inputs.cat`."""
        return tuple(self._strings)

    @property
    def definitions(self) -> dict[str, str]:
        """Derived feature → sha256 of its code (comments, docstring and layout left out)."""
        return {_name(function): definition(function) for function, _ in self._derived}

    def encode(self, columns: Columns) -> Inputs:
        """Inputs for n_rows; pure, and row by row: a row's result does not depend on its neighbours."""
        n_rows = len(next(iter(columns.values())))
        num = np.empty((n_rows, len(self.numeric)), dtype=np.float32)
        at = 0
        with np.errstate(over="ignore"):
            for name, _ in self._numeric:
                num[:, at] = columns[name]
                at += 1
            for column in self._moments:
                for part in DATE_PARTS.values():
                    num[:, at] = part(columns[column.name])
                    at += 1
            for function, needs in self._derived:
                num[:, at] = function(*(columns[need] for need in needs))
                at += 1
        cat = np.empty((n_rows, len(self._strings)), dtype=object)
        for position, column in enumerate(self._strings):
            values = columns[column.name]
            absent = missing(values)
            cat[:, position] = np.where(absent, MISSING, values) if absent.any() else values
        return Inputs(num, cat)


def definition(function: Derived) -> str:
    """sha256 of a function's syntax tree without docstrings: moves with meaning, not with layout."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return sha256_text(ast.unparse(tree))


def _name(function: Derived) -> str:
    return str(function.__name__)
