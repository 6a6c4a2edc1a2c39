"""Shapley values: axioms, sums and standard errors."""

import itertools
import math

import numpy as np
import pytest

from flywheel_ml.explanation import shapley
from flywheel_ml.explanation.shapley import CELLS_AT_ONCE, MIN_DRAWS, ROWS_AT_ONCE, Game, compute_shapley_values

OTHERS = 7
SOME = 9
"""Players: few enough to try every order, and with `MAX_SCORED_ROWS` too many for `compute_shapley_values` to."""
MAX_SCORED_ROWS = 2000


def table(rows: int, players: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, players))


def mixing(own: np.ndarray, background: np.ndarray, score: object) -> Game:
    """The game of a row [players] against background rows [n, players]; `score` takes rows [n, players]."""

    def game(joined: np.ndarray, other: np.ndarray) -> np.ndarray:
        found: np.ndarray = score(np.where(joined, own, background[other]))  # type: ignore[operator]
        return found

    return game


def crooked(rows: np.ndarray) -> np.ndarray:
    """Every player's part depends on others; the last one has none."""
    mixed = rows[:, 0] * rows[:, 1] + np.maximum(rows[:, 2], rows[:, 3]) * rows[:, 4]
    found: np.ndarray = 1 / (1 + np.exp(-(mixed + rows[:, 5] ** 2 - rows[:, 6] * rows[:, 7])))
    return found


def by_definition(game: Game, players: int, others: int) -> np.ndarray:
    """Shapley's own formula over all coalitions, one at a time."""
    worth = {}
    for coalition in itertools.product((False, True), repeat=players):
        joined = np.tile(np.array(coalition), (others, 1))
        worth[coalition] = game(joined, np.arange(others)).mean()
    values = np.zeros(players)
    for coalition, found in worth.items():
        size = sum(coalition)
        for player in range(players):
            if not coalition[player]:
                joined_too = tuple(was or at == player for at, was in enumerate(coalition))
                weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
                values[player] += weight * (worth[joined_too] - found)
    return values


@pytest.fixture(scope="module")
def game() -> Game:
    return mixing(table(1, SOME)[0], table(OTHERS, SOME, 2), crooked)


def test_exact_values_match_the_definition(game: Game) -> None:
    found = compute_shapley_values(game, SOME, OTHERS)
    assert found.is_exact
    assert found.scored == OTHERS * 2**SOME
    np.testing.assert_allclose(found.values, by_definition(game, SOME, OTHERS), atol=1e-12)
    assert (found.errors == 0).all()


def test_sampled_values_lie_within_their_errors(game: Game) -> None:
    exact = by_definition(game, SOME, OTHERS)
    found = compute_shapley_values(game, SOME, OTHERS, MAX_SCORED_ROWS)
    assert not found.is_exact
    assert (np.abs(found.values - exact) <= 4 * found.errors + 1e-12).all()
    assert (found.errors[:-1] > 0).all()
    assert found.errors.max() < 0.01


def test_reported_errors_match_the_actual_errors(game: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = by_definition(game, SOME, OTHERS)
    made, told = [], []
    for seed in range(60):
        monkeypatch.setattr(shapley, "SEED", seed)
        found = compute_shapley_values(game, SOME, OTHERS, MAX_SCORED_ROWS)
        made.append((found.values - exact)[:-1])
        told.append(found.errors[:-1])
    ratio = np.sqrt((np.array(made) ** 2).mean(axis=0)) / np.sqrt((np.array(told) ** 2).mean(axis=0))
    assert ((ratio > 0.7) & (ratio < 1.4)).all()


@pytest.mark.parametrize("most", [20_000, MAX_SCORED_ROWS, 300, 1])
def test_the_values_add_up_to_the_score_less_the_base(game: Game, most: int) -> None:
    found = compute_shapley_values(game, SOME, OTHERS, most)
    assert found.values.sum() == pytest.approx(found.score - found.base, abs=1e-12)
    assert found.score == pytest.approx(game(np.ones((1, SOME), dtype=np.bool_), np.zeros(1, dtype=np.intp))[0])
    assert found.base == pytest.approx(
        game(np.zeros((found.others, SOME), dtype=np.bool_), np.arange(found.others)).mean()
    )


@pytest.mark.parametrize("most", [20_000, MAX_SCORED_ROWS, 1])
def test_player_without_effect_gets_zero(game: Game, most: int) -> None:
    found = compute_shapley_values(game, SOME, OTHERS, most)
    assert (found.values[-1], found.errors[-1]) == (0, 0)


def test_equal_players_get_equal_values() -> None:
    own, background = np.ones(4), np.zeros((1, 4))
    game = mixing(own, background, lambda rows: np.maximum(rows[:, 1], rows[:, 2]) * rows[:, 0])
    values = compute_shapley_values(game, 4, 1).values
    assert values[1] == values[2] > 0
    assert values.tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6, 0])
    drawn = compute_shapley_values(game, 4, 1, most=15)
    assert not drawn.is_exact
    assert abs(drawn.values[1] - drawn.values[2]) <= 4 * np.hypot(*drawn.errors[1:3])


def test_additive_game_has_exact_values() -> None:
    own, background = table(1, 40)[0], table(50, 40, 2)
    weights = np.arange(40)
    found = compute_shapley_values(mixing(own, background, lambda rows: rows @ weights), 40, 50)
    assert not found.is_exact
    np.testing.assert_allclose(found.values, weights * (own - background.mean(axis=0)), atol=1e-9)
    assert found.errors.max() < 1e-9


@pytest.mark.parametrize(
    ("players", "others"), [(1, 1), (1, 50), (8, 50), (9, 50), (17, 50), (200, 50), (1500, 50), (300, 1)]
)
def test_scored_rows_stay_within_the_limits(players: int, others: int) -> None:
    sizes: list[int] = []

    def counting(joined: np.ndarray, other: np.ndarray) -> np.ndarray:
        assert joined.shape == (len(other), players)
        assert other.max() < others
        sizes.append(len(other))
        counts: np.ndarray = joined.sum(axis=1).astype(np.float64)
        return counts

    found = compute_shapley_values(counting, players, others)
    assert sum(sizes) == found.scored <= shapley.MAX_SCORED_ROWS
    assert max(sizes) <= ROWS_AT_ONCE
    assert max(sizes) * players <= CELLS_AT_ONCE
    assert min(others, MIN_DRAWS) <= found.others <= others
    np.testing.assert_allclose(found.values, 1)


def test_thousands_of_players_use_the_minimum_of_draws() -> None:
    found = compute_shapley_values(lambda joined, _: joined[:, :3].sum(axis=1).astype(np.float64), 12_000, 50)
    assert (found.others, found.is_exact) == (MIN_DRAWS, False)
    assert found.values.sum() == pytest.approx(3)


def test_values_are_deterministic(game: Game) -> None:
    one, other = (compute_shapley_values(game, SOME, OTHERS, MAX_SCORED_ROWS) for _ in range(2))
    assert one.values.tobytes() == other.values.tobytes()
    assert one.errors.tobytes() == other.errors.tobytes()
