"""Shapley values of a game: exact for few players, sampled for many.

In the game, the row's columns (the players) replace the columns of a background row one after another. When a column
joins, it is credited with the gain in score. A Shapley value (Shapley, 1953) is this gain averaged over every order of
joining, and here also over several background rows. With few players all coalitions are scored. With more, orders are
sampled (Castro et al., 2009; Štrumbelj & Kononenko, 2014), equally many for each background row. Each order is paired
with its reverse, because their errors partly cancel (Mitchell et al., 2022).

Within one order, the gains add up to the total change of the score. The values therefore always add up to the score
minus the base.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MAX_SCORED_ROWS = 20_000
"""Maximum rows scored for one explanation; the minimum of orders for thousands of players may need more."""
ROWS_AT_ONCE, CELLS_AT_ONCE = 2048, 1_000_000
"""Maximum rows, and maximum rows times players, of one call of the game."""
SEED = 0
MIN_DRAWS = 2
"""Minimum draws for an estimate of the error."""

Game = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Scores float64 [n] of n mixed rows, given bool [n, players] (who has joined) and int [n] (which background row)."""


class ShapleyValues(NamedTuple):
    """Shapley values and how they were computed.

    Attributes:
        values: float64 [players]; they add up to `score` minus `base`.
        errors: float64 [players], standard errors due to sampled orders; 0 if exact.
        base: mean score of the background rows.
        score: of the row.
        others: number of background rows used.
        scored: number of rows scored.
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
    """Compute Shapley values; deterministic, bit for bit, for the same game.

    Args:
        game: scores mixed rows; a row's score must not depend on other rows of the call.
        players: number of players, at least 1.
        others: number of background rows, at least 1; if `most` is too low for all, the first are used.
        most: maximum rows to score.
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
    score = float(
        scored[-1]
    )  # With all players joined, every background row gives the same score; a mean would round it.
    return ShapleyValues(values, np.zeros(players), float(worth[0]), score, others, len(scored), is_exact=True)


def _compute_sampled(game: Game, players: int, others: int, most: int) -> ShapleyValues:
    """Sample orders in pairs, equally many for each background row."""
    steps = players - 1
    others = min(others, max(MIN_DRAWS, (most - 1) // (2 * steps + 1)))
    pairs = max(1 if others >= MIN_DRAWS else MIN_DRAWS, (most - 1 - others) // (2 * steps * others))
    rng = np.random.default_rng(SEED)
    place = rng.permuted(np.tile(np.arange(players), (others * pairs, 1)), axis=1)
    place = np.stack((place, steps - place), axis=1).reshape(-1, players)
    other = np.repeat(np.arange(others), 2 * pairs)

    def joined(at: np.ndarray) -> np.ndarray:
        """Return the players whose position in the order is below the step's number, 1 to `steps`."""
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
    """Return the standard errors [players] of the means of [others, pairs, players].

    With one pair per background row, sampling error and differences between rows cannot be separated; both count.
    """
    others, pairs, _ = of_pairs.shape
    found: np.ndarray
    if pairs == 1:
        found = of_pairs[:, 0].std(axis=0, ddof=1) / math.sqrt(others)
    else:
        found = np.sqrt(of_pairs.var(axis=1, ddof=1).sum(axis=0) / pairs) / others
    return found


def _score_rows(game: Game, joined: Callable[[np.ndarray], np.ndarray], other: np.ndarray, players: int) -> np.ndarray:
    """Score the mixed rows of all steps in chunks; `joined` returns who has joined in a step."""
    size = max(1, min(ROWS_AT_ONCE, CELLS_AT_ONCE // players))
    parts = (np.arange(at, min(at + size, len(other))) for at in range(0, len(other), size))
    return np.concatenate([game(joined(part), other[part]) for part in parts])
