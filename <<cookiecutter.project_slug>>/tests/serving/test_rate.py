"""Buckets of tokens."""

import pytest

from << cookiecutter.package_name >>.serving import rate
from << cookiecutter.package_name >>.serving.rate import RateLimit


class Clock:
    """A clock that stands still until it is moved."""

    now = 1_000_000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In the place of the real one."""
    clock = Clock()
    monkeypatch.setattr(rate, "time", clock)
    return clock


def taken(limit: RateLimit, key: str, tries: int) -> int:
    return sum(limit.wait(key) == 0 for _ in range(tries))


@pytest.mark.parametrize(("per_second", "burst", "at_once"), [(100, 0, 100), (100, 7, 7), (0.5, 0, 1), (3, 1000, 1000)])
def test_a_burst_passes_and_then_what_the_rate_allows(
    clock: Clock, per_second: float, burst: int, at_once: int
) -> None:
    limit = RateLimit(per_second, burst)
    assert taken(limit, "a", 2 * at_once) == at_once
    assert limit.wait("a") == pytest.approx(1 / per_second)
    for _ in range(50):
        clock.now += 1 / per_second
        assert taken(limit, "a", 2) == 1
    clock.now += 1000 * at_once / per_second
    assert taken(limit, "a", 2 * at_once) == at_once


def test_one_key_takes_nothing_from_another(clock: Clock) -> None:
    limit = RateLimit(1, 5)
    assert (taken(limit, "a", 50), taken(limit, "b", 50)) == (5, 5)


def test_idle_keys_are_forgotten_and_busy_ones_are_not(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MOST", 10)
    limit = RateLimit(1, 2)
    for round_ in range(20):
        for key in range(10):
            assert limit.wait((round_, key)) == 0
        assert taken(limit, "busy", 5) <= 2
        clock.now += 1.0
    assert len(vars(limit)["_full"]) <= 2 * 11
