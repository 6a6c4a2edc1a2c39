"""Rate limits of API keys."""

import io
from typing import Any

import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.auth import rate_limit
from flywheel_ml.serving.auth.guard import Guard
from flywheel_ml.serving.auth.rate_limit import RateLimit
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.logs import logger
from flywheel_ml.serving.observability.metrics import MAX_KEY_NAMES, Metrics


class Clock:
    """A clock that stands still until it is moved."""

    now = 1_000_000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replaces the real clock."""
    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    return clock


def taken(limit: RateLimit, key: str, tries: int) -> int:
    return sum(limit.take_token(key) == 0 for _ in range(tries))


@pytest.mark.parametrize(("per_second", "burst", "at_once"), [(100, 0, 100), (100, 7, 7), (0.5, 0, 1), (3, 1000, 1000)])
def test_burst_passes_and_then_the_rate_applies(clock: Clock, per_second: float, burst: int, at_once: int) -> None:
    limit = RateLimit(per_second, burst)
    assert taken(limit, "a", 2 * at_once) == at_once
    assert limit.take_token("a") == pytest.approx(1 / per_second)
    for _ in range(50):
        clock.now += 1 / per_second
        assert taken(limit, "a", 2) == 1
    clock.now += 1000 * at_once / per_second
    assert taken(limit, "a", 2 * at_once) == at_once


def test_keys_have_separate_rates(clock: Clock) -> None:
    limit = RateLimit(1, 5)
    assert (taken(limit, "a", 50), taken(limit, "b", 50)) == (5, 5)


def test_idle_keys_are_dropped_and_busy_keys_are_kept(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_KEYS", 10)
    limit = RateLimit(1, 2)
    for round_ in range(20):
        for key in range(10):
            assert limit.take_token((round_, key)) == 0
        assert taken(limit, "busy", 5) <= 2
        clock.now += 1.0
    assert len(vars(limit)["_full"]) <= 2 * 11


def read_rejections(metrics: Metrics) -> dict[str, float]:
    return {
        sample.labels["key"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "http_requests_rate_limited_total"
    }


def refusals(tries: int, *headers: tuple[bytes, bytes], **settings: Any) -> tuple[list[Problem], dict[str, float]]:
    metrics, found = Metrics(), list[Problem]()
    guard = Guard(Settings(_env_file=None, **settings), metrics, logger(io.StringIO()))
    for _ in range(tries):
        try:
            guard.authorise(headers, "/predict")
        except Problem as problem:
            found.append(problem)
    return found, read_rejections(metrics)


def test_rate_limited_client_gets_retry_after(clock: Clock) -> None:
    found, counted = refusals(5, (b"x-api-key", b"secret"), api_keys="shop:predict:secret", rate_limit=0.3)
    assert [problem.status for problem in found] == [429] * 4
    assert found[0].headers["Retry-After"] == "4"
    assert counted == {"shop": 4.0}


def test_callers_without_keys_share_one_rate(clock: Clock) -> None:
    found, counted = refusals(5, rate_limit=2)
    assert len(found) == 3
    assert counted == {"anonymous": 3.0}
    assert refusals(500) == ([], {})


def test_unnamed_keys_have_separate_rates_and_one_series(clock: Clock) -> None:
    found, counted = refusals(5, (b"x-api-key", b"a"), api_keys="a,b", rate_limit=2)
    assert (len(found), counted) == (3, {"unnamed": 3.0})


def test_key_names_beyond_the_limit_share_a_series() -> None:
    metrics = Metrics()
    for name in range(MAX_KEY_NAMES + 50):
        metrics.http.count_rate_limited(str(name))
    counted = read_rejections(metrics)
    assert len(counted) == MAX_KEY_NAMES + 1
    assert counted["other"] == 50
