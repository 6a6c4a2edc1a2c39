"""Attacks the decision of a canary: no traffic, no labels, broken counts, and challengers of every kind."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from flywheel_ml.experiments.canary import Decision, decide
from flywheel_ml.experiments.evidence import (
    LATENCY_EDGES,
    MAX_ALPHA,
    AlphaBudget,
    CanaryPlan,
    Step,
    StepEvidence,
    VariantEvidence,
)
from flywheel_ml.experiments.sequential import LossSums
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError

PAIRED = CanaryPlan(margin=0.02)
RANDOMISED = CanaryPlan(margin=0.02, comparison="randomised")
LATENCIES = tuple(100 if at == 12 else 0 for at in range(len(LATENCY_EDGES) + 1))


def shadow(rows: int = 4000, worse: int = 100, better: int = 100, errors: int = 0) -> StepEvidence:
    """A shadow step with discordant pairs of a 0/1 loss."""
    paired = LossSums(rows - errors, worse - better, worse + better)
    return StepEvidence(0, VariantEvidence(rows), VariantEvidence(rows, errors), paired)


def ramp(step: int, rows: int, rates: tuple[float, float] = (0.1, 0.1), share: float = 0.0) -> StepEvidence:
    """A later step with every row labelled, and these rates of a 0/1 loss."""
    share = share or {1: 0.05, 2: 0.25, 3: 0.5}[step]
    ours = round(rows * share)
    champion, challenger = (
        VariantEvidence(count, 0, (), LossSums(count, count * rate, count * rate))
        for count, rate in zip((rows - ours, ours), rates, strict=True)
    )
    return StepEvidence(step, champion, challenger)


def decided(plan: CanaryPlan, *steps: StepEvidence, days: float = 1.0) -> Decision:
    return decide(steps, plan, days)


def test_equal_paired_challenger_goes_through_the_ramp() -> None:
    steps = [shadow()]
    assert decided(PAIRED, *steps).action == "advance"
    for step in (1, 2):
        steps.append(ramp(step, 8000))
        assert decided(PAIRED, *steps).action == "advance"
    decision = decided(PAIRED, *steps, ramp(3, 2000))
    assert decision.action == "promote"
    assert decision.interval.high < PAIRED.margin
    assert decision.alpha == pytest.approx(MAX_ALPHA)


def test_paired_challenger_does_not_leave_the_shadow_undecided() -> None:
    decision = decided(PAIRED, shadow(600, 12, 12))
    assert decision.action == "continue"
    assert "not yet proven" in decision.reason


def test_identical_challenger_is_promoted_only_after_enough_rows() -> None:
    assert decided(PAIRED, shadow(200, 0, 0)).action == "continue"
    assert decided(PAIRED, shadow(2000, 0, 0)).action == "advance"


def test_worse_challenger_is_rolled_back_in_the_shadow() -> None:
    for plan in (PAIRED, RANDOMISED):
        decision = decided(plan, shadow(4000, 260, 100))
        assert decision.action == "roll back"
        assert "0.04" in decision.reason


def test_equal_randomised_challenger_is_promoted_in_the_last_step_only() -> None:
    steps = [shadow(500, 10, 10)]
    for step in (1, 2):
        steps.append(ramp(step, 40_000))
        assert decided(RANDOMISED, *steps).action == "advance"
    assert decided(RANDOMISED, *steps, ramp(3, 2000)).action == "promote"


def test_better_shadow_does_not_promote_a_worse_randomised_challenger() -> None:
    """As a shadow it predicts better; where its predictions act, outcomes are worse."""
    steps = [shadow(4000, 0, 300), ramp(1, 8000), ramp(2, 8000), ramp(3, 8000, (0.1, 0.15))]
    assert decided(RANDOMISED, *steps).action == "roll back"


def test_strata_are_not_pooled() -> None:
    """Outcomes improved while the share grew, so the pooled rate of a worse challenger is lower."""
    steps = [shadow(), ramp(1, 20_000, (0.2, 0.23)), ramp(2, 10_000, (0.05, 0.08)), ramp(3, 8_000, (0.02, 0.05))]
    ours, theirs = (
        sum(getattr(one, side).losses.total for one in steps) / sum(getattr(one, side).losses.rows for one in steps)
        for side in ("challenger", "champion")
    )
    assert ours < theirs
    assert decided(RANDOMISED, *steps).action == "roll back"


def test_failing_challenger_is_rolled_back() -> None:
    broken = StepEvidence(1, VariantEvidence(190, 0), VariantEvidence(10, 5))
    decision = decided(PAIRED, shadow(), broken)
    assert decision.action == "roll back"
    assert decision.reason == "errors: in step 5.0%, 5 of its 10 rows failed, 0 of the champion's 190"


def test_shadow_that_never_answers_is_rolled_back() -> None:
    assert decided(PAIRED, shadow(60, 0, 0, errors=60)).action == "roll back"


def test_slow_challenger_is_rolled_back() -> None:
    slow = tuple(70 if at == 24 else 30 if at == 12 else 0 for at in range(len(LATENCY_EDGES) + 1))
    step = StepEvidence(3, VariantEvidence(100, 0, LATENCIES), VariantEvidence(100, 0, slow))
    decision = decided(PAIRED, shadow(), step)
    assert decision.action == "roll back"
    assert decision.reason.startswith("latency")
    even = StepEvidence(3, VariantEvidence(100, 0, LATENCIES), VariantEvidence(100, 0, LATENCIES))
    assert decided(PAIRED, shadow(), even).action == "continue"


def test_wrong_sample_ratio_is_rolled_back() -> None:
    skewed = StepEvidence(3, VariantEvidence(4000), VariantEvidence(5000))
    decision = decided(PAIRED, shadow(), skewed)
    assert decision.action == "roll back"
    assert "5,000 of 9,000 rows, planned 50.0%" in decision.reason


@pytest.mark.parametrize("plan", [PAIRED, RANDOMISED], ids=lambda plan: plan.comparison)
def test_no_traffic_is_a_hold(plan: CanaryPlan) -> None:
    assert decided(plan).action == "hold"
    assert decided(plan, StepEvidence(0)).reason == "no traffic reaches the challenger in step shadow"
    silent = decided(plan, shadow(), StepEvidence(1, VariantEvidence(50_000)))
    assert (silent.action, silent.reason) == ("hold", "no traffic reaches the challenger in step 5.0%")


def test_no_labels_is_a_hold() -> None:
    unlabelled = StepEvidence(0, VariantEvidence(9000), VariantEvidence(9000))
    assert decided(PAIRED, unlabelled).reason == "no labels have arrived in step shadow"
    later = StepEvidence(1, VariantEvidence(9500), VariantEvidence(500))
    decision = decided(RANDOMISED, shadow(), later)
    assert (decision.action, decision.reason) == ("hold", "no labels have arrived in step 5.0%")
    assert decided(PAIRED, shadow(), later).action == "advance"


def test_deadline_promotes_nothing_undecided() -> None:
    undecided = [shadow(500, 10, 10), ramp(1, 2000), ramp(2, 2000), ramp(3, 300)]
    assert decided(RANDOMISED, *undecided, days=13.9).action == "continue"
    decision = decided(RANDOMISED, *undecided, days=14.0)
    assert decision.action == "expire"
    assert "not promoted" in decision.reason
    assert decided(PAIRED, StepEvidence(0), days=20).action == "expire"
    assert decided(PAIRED, shadow(4000, 260, 100), days=20).action == "roll back"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: shadow()._replace(paired=LossSums(10, math.nan, 1)), "not finite"),
        (lambda: shadow()._replace(paired=LossSums(10, math.inf, math.inf)), "not finite"),
        (lambda: shadow()._replace(paired=LossSums(10, 9, 1)), "not sums"),
        (lambda: shadow()._replace(paired=LossSums(-1, 0, 0)), "not sums"),
        (lambda: shadow()._replace(challenger=VariantEvidence(5, 6)), "6 errors in 5 rows"),
        (lambda: shadow()._replace(champion=VariantEvidence(-5)), "errors in -5 rows"),
        (lambda: shadow()._replace(champion=VariantEvidence(5, 0, (1, 2))), "latencies are not 31 counts"),
        (lambda: shadow()._replace(step=7), "step 7 is not one"),
        (lambda: shadow()._replace(step=-1), "step -1 is not one"),
    ],
)
def test_impossible_counts_are_a_hold(broken: Callable[[], StepEvidence], message: str) -> None:
    for steps in ([broken()], [broken(), ramp(1, 8000), ramp(2, 8000), ramp(3, 8000)]):
        decision = decided(PAIRED, *steps)
        assert decision.action == "hold"
        assert message in decision.reason
        assert decided(PAIRED, *steps, days=20).action == "expire"


def test_decision_follows_from_the_counts_alone() -> None:
    """A controller that adds rows one by one, and one that counts them after a restart, decide the same."""
    rng = np.random.default_rng(0)
    added, counted = [], []
    for _ in range(2):
        losses, sums = rng.random(3000) < 0.1, LossSums()
        for loss in losses:
            sums = LossSums(sums.rows + 1, sums.total + loss, sums.squares + loss**2)
        added.append(VariantEvidence(3000, 0, (), sums))
        counted.append(VariantEvidence(3000, 0, (), LossSums(3000, float(losses.sum()), float(losses.sum()))))
    first, again = (
        decided(RANDOMISED, shadow(500, 10, 10), StepEvidence(3, champion, challenger))
        for champion, challenger in (added, counted)
    )
    assert first == again


def test_a_step_entered_again_is_a_stratum_of_its_own() -> None:
    first, again = ramp(1, 20_000, (0.3, 0.3)), ramp(1, 20_000, (0.1, 0.1))
    decision = decided(RANDOMISED, shadow(500, 10, 10), first, again)
    assert decision.action == "advance"
    assert decision.interval.estimate == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_at_the_extremes_are_decided(rate: float) -> None:
    steps = [shadow(500, 0, 0), ramp(1, 20_000, (rate, rate)), ramp(2, 20_000, (rate, rate))]
    assert decided(RANDOMISED, *steps, ramp(3, 20_000, (rate, rate))).action == "promote"
    opposite = (0.0, 1.0) if rate == 0.0 else (1.0, 0.0)
    expected = "roll back" if rate == 0.0 else "promote"
    assert decided(RANDOMISED, shadow(500, 0, 0), ramp(3, 20_000, opposite)).action == expected


def test_alpha_is_spent_once() -> None:
    budget = AlphaBudget()
    assert budget.total == pytest.approx(sum(budget.model_dump().values()))
    assert budget.total <= MAX_ALPHA + 1e-12
    with pytest.raises(ConfigError, match=r"add up to 0\.065; together they may be 0\.05 at most"):
        config_model.parse({"worse": 0.04}, AlphaBudget, "params.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"margin": 0}, "margin"),
        ({"margin": 0.1, "steps": []}, "rising shares"),
        ({"margin": 0.1, "steps": [{}, {"share": 0.5}, {"share": 0.25}]}, "rising shares"),
        ({"margin": 0.1, "steps": [{"share": 0.5}]}, "starts with the shadow step"),
        ({"margin": 0.1, "comparison": "randomised", "steps": [{}]}, "has a step with a share"),
        ({"margin": 0.1, "comparison": "random"}, "comparison"),
    ],
)
def test_impossible_plan_is_rejected(content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_model.parse(content, CanaryPlan, "params.yaml")


def test_a_plan_may_have_other_steps() -> None:
    plan = CanaryPlan(margin=0.05, comparison="randomised", steps=(Step(share=0.5, min_rows=50),))
    step = ramp(3, 4000, share=0.5)._replace(step=0)
    assert decided(plan, step).action == "promote"
