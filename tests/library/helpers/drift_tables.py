"""Draws the columns of tables for the error study of the drift check: as in the reference, or changed in the window."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

COLUMNS = 20
Part = Literal["training", "reference", "window"]


class Group(NamedTuple):
    """Columns that are drawn together: `draw(rng, rows, part)` returns one array each, [COLUMNS or 1] × [rows].

    `kind` is the type and, for texts, the listed categories. `is_trained` says that training rows are drawn as well.
    """

    draw: Callable[[np.random.Generator, int, Part], list[np.ndarray]]
    kind: Literal["float", "boolean", "string"] = "float"
    listed: tuple[str, ...] | None = None
    is_trained: bool = False


Shape = Callable[[np.random.Generator, int, float], np.ndarray]
"""Draws one column of n rows, moved by an amount."""


def draw_normal(rng: np.random.Generator, rows: int, moved: float) -> np.ndarray:
    return rng.normal(moved, 1, rows)


def draw_rounded(rng: np.random.Generator, rows: int, moved: float) -> np.ndarray:
    return np.round(rng.normal(moved, 1, rows), 1)


def draw_integers(rng: np.random.Generator, rows: int, moved: float) -> np.ndarray:
    return rng.poisson(3 + moved, rows).astype(float)


def draw_spike(rng: np.random.Generator, rows: int, moved: float) -> np.ndarray:
    return np.where(rng.random(rows) < 0.6 + moved, 0.0, rng.exponential(size=rows))


def draw_flags(rng: np.random.Generator, rows: int, moved: float) -> np.ndarray:
    return (rng.random(rows) < 0.5 + moved).astype(float)


def draw_student(rng: np.random.Generator, rows: int, moved: float) -> np.ndarray:
    return rng.standard_t(2, rows) + moved


def draw_lognormal(rng: np.random.Generator, rows: int, moved: float) -> np.ndarray:
    return np.exp(rng.normal(moved, 2, rows))


def _draw_numbers(
    shape: Shape,
    moved: float,
    gaps: tuple[float, float],
    affected: int,
    count: int,
    rng: np.random.Generator,
    rows: int,
    part: Part,
) -> list[np.ndarray]:
    drawn = []
    for at in range(count):
        is_changed = part == "window" and at < affected
        values = shape(rng, rows, moved if is_changed else 0.0)
        if share := gaps[is_changed]:
            values[rng.random(rows) < share] = np.nan
        drawn.append(values)
    return drawn


def numbers(
    shape: Shape = draw_normal,
    moved: float = 0.0,
    gaps: tuple[float, float] = (0.0, 0.0),
    affected: int = 1,
    count: int = COLUMNS,
) -> Group:
    """Independent columns; those affected are moved in the window. `gaps`: share of missing values, without and with.

    The second of `gaps` is that of the affected columns in the window.
    """
    kind: Literal["float", "boolean"] = "boolean" if shape is draw_flags else "float"
    return Group(partial(_draw_numbers, shape, moved, gaps, affected, count), kind)


def _draw_correlated(blocks: int, moved: float, rng: np.random.Generator, rows: int, part: Part) -> list[np.ndarray]:
    common = np.repeat(rng.normal(size=(blocks, rows)), COLUMNS // blocks, axis=0)
    values = np.sqrt(0.9) * common + np.sqrt(0.1) * rng.normal(size=(COLUMNS, rows))
    values[0] += moved * (part == "window")
    return list(values)


def correlated(blocks: int = 1, moved: float = 0.0) -> Group:
    """Normal columns in blocks; two columns of a block have correlation 0.9. The first column is moved."""
    return Group(partial(_draw_correlated, blocks, moved))


def _draw_categories(
    weights: np.ndarray, moved: float, fresh: float, count: int, rng: np.random.Generator, rows: int, part: Part
) -> list[np.ndarray]:
    names, drawn = np.arange(len(weights)).astype(str).astype(object), []
    for at in range(count):
        is_changed = part == "window" and at == 0
        chosen = names[rng.choice(len(names), rows, p=weights)]
        if is_changed and moved:
            # This rate raises the share of the second value by `moved`.
            chosen[rng.random(rows) < moved / (1 - weights[1])] = names[1]
        if is_changed:
            chosen[rng.random(rows) < fresh] = "new"
        drawn.append(chosen)
    return drawn


def categories(levels: int, moved: float = 0.0, exponent: float = 1.0, count: int = COLUMNS) -> Group:
    """Texts of `levels` values; in the window, the share of one value of the first column grows by `moved`.

    Args:
        levels: number of values.
        moved: the growth.
        exponent: exponent of the frequencies; 0: equal ones, 1: those of words in a language.
        count: number of columns.
    """
    return Group(partial(_draw_categories, _weigh(levels, exponent), moved, 0.0, count), "string", is_trained=True)


def texts(values: int, fresh: float = 0.0) -> Group:
    """One column of texts as frequent as words; a share of the window's rows holds a new one."""
    return Group(partial(_draw_categories, _weigh(values, 1.0), 0.0, fresh, 1), "string", is_trained=True)


def listed(fresh: float = 0.0, values: int = 120, known: int = 100) -> Group:
    """As `texts`, but the contract lists the first values only; the others are unseen on both sides."""
    names = tuple(map(str, range(known)))
    return Group(partial(_draw_categories, _weigh(values, 1.0), 0.0, fresh, 1), "string", names, is_trained=True)


def _weigh(levels: int, exponent: float) -> np.ndarray:
    weights = 1.0 / np.arange(1, levels + 1) ** exponent
    shares: np.ndarray = weights / weights.sum()
    return shares


def mixed(moved: float = 0.0) -> tuple[Group, ...]:
    """Numbers, ties, gaps, categories and texts."""
    return (
        numbers(moved=moved, count=6),
        numbers(draw_integers, count=3),
        numbers(draw_spike, gaps=(0.05, 0.05), count=3),
        numbers(draw_flags, count=2),
        categories(8, count=3),
        texts(800),
    )
