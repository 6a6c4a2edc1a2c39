"""From contract columns to the two arrays every model here takes: one way for training, batch, stream and API."""

import ast
import inspect
import keyword
import re
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
        ConfigError: a derived feature asks for a column that the contract does not have as an input, or two
            features have one name.
    """

    def __init__(self, contract: Contract, derived: Sequence[Derived] = DERIVED) -> None:
        inputs = contract.inputs
        self._numeric: list[tuple[str, Column]] = [(c.name, c) for c in inputs if c.is_numeric]
        self._moments: list[Column] = [c for c in inputs if c.type == "datetime"]
        self._strings: list[Column] = [c for c in inputs if c.type == "string"]
        self._derived: list[tuple[Derived, list[str]]] = []
        names = {parameter(c.name): c.name for c in inputs}
        for function in derived:
            needs = list(inspect.signature(function).parameters)
            if absent := [need for need in needs if need not in names]:
                raise ConfigError(
                    f"derived.py: '{_name(function)}' takes '{absent[0]}', which is no input column of contract.yaml; "
                    + nearest(absent[0], list(names))
                )
            self._derived.append((function, [names[need] for need in needs]))
        features = [*self.numeric, *(column.name for column in self._strings)]
        if twice := sorted({name for name in features if features.count(name) > 1}):
            raise ConfigError(
                f"two features are called '{twice[0]}': columns of contract.yaml, parts of its moments "
                f"(<column>.{', <column>.'.join(DATE_PARTS)}) and functions of derived.py; rename one"
            )

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
        """Derived feature → sha256 of what it computes, see `definition`."""
        return {_name(function): definition(function) for function, _ in self._derived}

    def encode(self, columns: Columns) -> Inputs:
        """Inputs for n_rows; pure, and row by row: a row's result does not depend on its neighbours.

        A number that float32 cannot hold, an infinity say, counts as missing.
        """
        n_rows = len(next(iter(columns.values())))
        num = np.empty((n_rows, len(self.numeric)), dtype=np.float32)
        at = 0
        with np.errstate(all="ignore"):
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
        num[np.isinf(num)] = np.nan
        cat = np.empty((n_rows, len(self._strings)), dtype=object)
        for position, column in enumerate(self._strings):
            values = columns[column.name]
            absent = missing(values)
            cat[:, position] = np.where(absent, MISSING, values) if absent.any() else values
        return Inputs(num, cat)


def parameter(column: str) -> str:
    """What a derived feature calls a column: its name, with "_" for all that no Python name can have."""
    name = re.sub(r"\W", "_", column)
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"_{name}"


def definition(function: Derived) -> str:
    """sha256 of what a function computes: moves with its meaning, not with comments, docstrings or layout.

    The functions and constants of its own module that it uses belong to it.
    """
    module = inspect.getmodule(function)
    beside = _by_name(ast.parse(inspect.getsource(module))) if module else {}
    waiting, told = _by_name(ast.parse(textwrap.dedent(inspect.getsource(function)))), dict[str, str]()
    while waiting:
        name, node = waiting.popitem()
        told[name] = ast.unparse(_without_docstrings(node))
        used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        waiting |= {name: beside[name] for name in used & beside.keys() - told.keys()}
    return sha256_text("\n".join(told[name] for name in sorted(told)))


def _by_name(module: ast.Module) -> dict[str, ast.stmt]:
    """The statements of a module that define something, by what they define; imports belong to others."""
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


def _name(function: Derived) -> str:
    return str(function.__name__)
