"""Shapley values: what each player of a game is worth, exactly where there are few, by sampling where there are many.

The game: a row's columns join, one after another, another row, a background row, and take its columns' places; what
the score gains when a column joins is credited to it. A Shapley value (Shapley, 1953) is that gain averaged over every
order of joining, here also over several background rows. With few players all coalitions are scored. With more, orders
are drawn (Castro et al., 2009; Štrumbelj & Kononenko, 2014), each with its reverse, whose errors partly cancel
(Mitchell et al., 2022), as many for each background row.

Within one order the gains add up to the score's whole way, so the values always add up to the score less the base.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MAX_SCORED_ROWS = 20_000
"""Most rows that are scored for one explanation, unless a few orders of thousands of players alone need more."""
ROWS_AT_ONCE, CELLS_AT_ONCE = 2048, 1_000_000
"""Most rows, and most players in all rows, of one call of the game."""
SEED = 0
MIN_DRAWS = 2
"""So many draws give an error."""

Game = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Scores float64 [n] of n mixed rows, given bool [n, players] (who has joined) and int [n] (which background row)."""


class ShapleyValues(NamedTuple):
    """What a score comes from.

    Attributes:
        values: float64 [players]; they add up to `score` less `base`.
        errors: float64 [players], standard errors of the values through the draw of orders; 0 where none were drawn.
        base: mean score of the background rows.
        score: of the row.
        others: background rows that it was compared with.
        scored: rows that were scored.
        is_exact: whether every coalition was scored.
    """

    values: np.ndarray
    errors: np.ndarray
    base: float
    score: float
    others: int
    scored: int
    is_exact: bool


def compute_shapley_values(game: Game, players: int, others: int, most: int = MAX_SCORED_ROWS) -> ShapleyValues:
    """The Shapley values of at least one player against at least one background row; the same game, the same bits.

    Args:
        game: scores mixed rows; a row's score must not depend on its neighbours.
        players: how many.
        others: how many background rows there are; the first of them count where `most` does not reach for all.
        most: rows that may be scored.
    """
    if others * 2**players <= most:
        return _compute_exact(game, players, others)
    return _compute_sampled(game, players, others, most)


def _compute_exact(game: Game, players: int, others: int) -> ShapleyValues:
    each = np.arange(players)

    def joined(at: np.ndarray) -> np.ndarray:
        found: np.ndarray = (at[:, None] % 2**players >> each) & 1 == 1
        return found

    scored = _score_rows(game, joined, np.repeat(np.arange(others), 2**players), players)
    worth = scored.reshape(others, -1).mean(axis=0)
    coalitions = np.arange(2**players)
    sizes = joined(coalitions).sum(axis=1)
    weights = np.array([1 / (players * math.comb(players - 1, size)) for size in range(players)])
    values = np.empty(players)
    for player in range(players):
        without = coalitions[coalitions >> player & 1 == 0]
        values[player] = (weights[sizes[without]] * (worth[without + 2**player] - worth[without])).sum()
    score = float(scored[-1])  # All of them joined: of whichever background row, which the mean would round.
    return ShapleyValues(values, np.zeros(players), float(worth[0]), score, others, len(scored), is_exact=True)


def _compute_sampled(game: Game, players: int, others: int, most: int) -> ShapleyValues:
    """Orders in pairs, as many for each background row."""
    steps = players - 1
    others = min(others, max(MIN_DRAWS, (most - 1) // (2 * steps + 1)))
    pairs = max(1 if others >= MIN_DRAWS else MIN_DRAWS, (most - 1 - others) // (2 * steps * others))
    rng = np.random.default_rng(SEED)
    place = rng.permuted(np.tile(np.arange(players), (others * pairs, 1)), axis=1)
    place = np.stack((place, steps - place), axis=1).reshape(-1, players)
    other = np.repeat(np.arange(others), 2 * pairs)

    def joined(at: np.ndarray) -> np.ndarray:
        """Those whose place in the order is below the step's number, 1 to `steps`."""
        found: np.ndarray = place[at // steps] <= (at % steps)[:, None]
        return found

    between = _score_rows(game, joined, np.repeat(other, steps), players)
    begins = game(np.zeros((others, players), dtype=np.bool_), np.arange(others))
    ends = game(np.ones((1, players), dtype=np.bool_), np.zeros(1, dtype=np.intp))
    way = np.column_stack((begins[other], between.reshape(-1, steps), ends.repeat(len(other))))
    gains = np.take_along_axis(np.diff(way, axis=1), place, axis=1)
    of_pairs = gains.reshape(others, pairs, 2, players).mean(axis=2)
    return ShapleyValues(
        of_pairs.mean(axis=(0, 1)),
        _compute_errors(of_pairs),
        float(begins.mean()),
        float(ends[0]),
        others,
        len(between) + others + 1,
        is_exact=False,
    )


def _compute_errors(of_pairs: np.ndarray) -> np.ndarray:
    """Standard errors [players] of the means of [others, pairs, players].

    One pair for each background row does not tell what its draw adds from what the rows differ by; both count then.
    """
    others, pairs, _ = of_pairs.shape
    found: np.ndarray
    if pairs == 1:
        found = of_pairs[:, 0].std(axis=0, ddof=1) / math.sqrt(others)
    else:
        found = np.sqrt(of_pairs.var(axis=1, ddof=1).sum(axis=0) / pairs) / others
    return found


def _score_rows(game: Game, joined: Callable[[np.ndarray], np.ndarray], other: np.ndarray, players: int) -> np.ndarray:
    """Scores of the mixed rows that `joined` makes of their numbers, a bounded part at a time."""
    size = max(1, min(ROWS_AT_ONCE, CELLS_AT_ONCE // players))
    parts = (np.arange(at, min(at + size, len(other))) for at in range(0, len(other), size))
    return np.concatenate([game(joined(part), other[part]) for part in parts])
