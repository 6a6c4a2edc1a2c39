"""A model that fails as rarely as a canary tolerates is not paused; one that is broken is, at once."""

import random

from flywheel_ml.core.canary_params import CanaryParams
from flywheel_ml.serving.experiments.circuit_breaker import MAX_FAILURES, CircuitBreaker


def test_tolerated_failures_do_not_open_it() -> None:
    rate, rng, reasons = CanaryParams().max_error_rate, random.Random(1), list[str]()
    for _ in range(20):
        breaker = CircuitBreaker(reasons.append)
        for _ in range(10_000):
            breaker.record("slow" if rng.random() < rate else None)
    assert reasons == []


def test_failures_in_a_row_open_it() -> None:
    reasons = list[str]()
    breaker = CircuitBreaker(reasons.append)
    for at in range(MAX_FAILURES + 3):
        assert (breaker.opened is not None) == (at >= MAX_FAILURES)
        breaker.record("slow")
    assert reasons == [f"{MAX_FAILURES} of its last {MAX_FAILURES} calls failed, the last one: slow"]
