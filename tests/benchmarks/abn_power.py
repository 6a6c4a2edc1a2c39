"""Measures how often an A/B/n test of equal versions finds a winner, next to uncorrected z-tests that peek.

    python tests/benchmarks/run.py abn_power -- [--runs 4000]

Simulates three arms, the champion and two challengers, with a look every 100 labelled rows up to 20,000. A winner is
false if the interval of any challenger ever excludes the difference of 0, on either side. The planned effect and the
smallest variance are estimated from the champion's rows at every look, as in a report without EFFECT=. In each case, a
second simulation makes one challenger better by the planned effect.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from flywheel_ml.experiments.comparison import ALPHA, EFFECT_SIZE, Stratum, choose_effect, score_strata
from flywheel_ml.experiments.planning import Period, plan_sample_size, rate_variances
from flywheel_ml.experiments.sequential import LossSums, compute_interval

LOOK, ROWS = 100, 20_000
Z_SCORE = 1.96
TOLERATED = 0.056
"""Highest measured rate that agrees with α = 0.05 over 4,000 runs."""
THIRDS = (1 / 3, 1 / 3)
FAR_APART = (0.05, 0.2)


class Case(NamedTuple):
    """A metric: `rate` is the probability that a row has any, `sigma` the spread of a lognormal amount; and shares."""

    name: str
    rate: float
    sigma: float
    shares: tuple[float, ...]

    @property
    def deviation(self) -> float:
        """Standard deviation of one row."""
        mean = np.exp(self.sigma**2 / 2)
        return float(np.sqrt(self.rate * np.exp(2 * self.sigma**2) - (self.rate * mean) ** 2))


CASES = (
    Case("rate 1%", 0.01, 0.0, THIRDS),
    Case("rate 5%", 0.05, 0.0, THIRDS),
    Case("rate 50%", 0.5, 0.0, THIRDS),
    Case("rate 5%, shares 5% and 20%", 0.05, 0.0, FAR_APART),
    Case("lognormal", 1.0, 1.0, THIRDS),
    Case("revenue: 10% buy, lognormal", 0.1, 1.0, THIRDS),
)


class Outcome(NamedTuple):
    """Labelled rows at which each run found a winner, and at which uncorrected z-tests did; infinite if never."""

    found: np.ndarray
    peeked: np.ndarray


def simulate(case: Case, better: float, runs: int, seed: int, rows: int = ROWS) -> Outcome:
    """Simulate experiments in which the last challenger is better by `better` standard deviations of one row."""
    rng = np.random.default_rng(seed)
    arms = [(1 - sum(case.shares), 0.0), *((share, 0.0) for share in case.shares[:-1]), (case.shares[-1], better)]
    totals = [LossSums(*np.zeros((3, runs))) for _ in arms]
    found = Outcome(*(np.full(runs, np.inf) for _ in Outcome._fields))
    alpha = ALPHA / len(case.shares)
    for at in range(rows // LOOK):
        counts = rng.multinomial(LOOK, [share for share, _ in arms], size=runs)
        for arm, (_, gain) in enumerate(arms):
            totals[arm] = add(totals[arm], draw(case, gain * case.deviation, counts[:, arm], rng))
        effect = choose_effect(totals[0])
        wins, peeks = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
        for challenger in totals[1:]:
            score = score_strata([Stratum(totals[0], challenger)], effect)
            interval = compute_interval(score, (alpha / 2, alpha / 2), effect)
            wins |= np.asarray((interval.low > 0) | (interval.high < 0))
            peeks |= np.abs(score.score) / np.sqrt(np.maximum(score.information, 1e-12)) >= Z_SCORE
        for times, has_found in zip(found, (wins, peeks), strict=True):
            times[np.isinf(times) & has_found] = (at + 1) * LOOK
    return found


def draw(case: Case, gain: float, counts: np.ndarray, rng: np.random.Generator) -> LossSums:
    """Draw the sums of some rows of each run; `gain` is added to the mean of a row."""
    if not case.sigma:
        events = rng.binomial(counts, min(1.0, case.rate + gain))
        return LossSums(counts, events, events)
    values = np.exp(case.sigma * rng.standard_normal((len(counts), LOOK), dtype=np.float32)).astype(np.float64)
    values *= rng.random((len(counts), LOOK), dtype=np.float32) < case.rate
    values = np.where(np.arange(LOOK) < counts[:, None], values + gain, 0.0)
    return LossSums(counts, values.sum(axis=1), (values**2).sum(axis=1))


def add(sums: LossSums, more: LossSums) -> LossSums:
    """Add the sums of new rows."""
    return LossSums(*(one + other for one, other in zip(sums, more, strict=True)))


def find_fixed_sample(case: Case) -> float:
    """Labelled rows of all arms of a test with one look that finds the planned effect of the last challenger."""
    pair, effect = 1 - sum(case.shares) + case.shares[-1], EFFECT_SIZE * case.deviation
    variances = (case.deviation**2,) * 2 if case.sigma else rate_variances(case.rate, effect)
    schedule = (Period(case.shares[-1] / pair),)
    alpha = ALPHA / len(case.shares)
    return plan_sample_size(effect, variances, schedule, 1, alpha=alpha).fixed / pair


def judge(case: Case, equal: Outcome, better: Outcome) -> Iterator[tuple[str, str, bool]]:
    """Yield each target of a case, what was measured, and whether it is met."""
    false, peeked = np.isfinite(equal.found).mean(), np.isfinite(equal.peeked).mean()
    yield "any false winner in at most 5.6%", f"{false:.1%} (z-tests with peeking: {peeked:.1%})", false <= TOLERATED
    fixed = find_fixed_sample(case)
    power = np.mean(better.found <= 2 * fixed)
    measured = f"{power:.1%}; median {np.median(better.found) / fixed:.2f} × {fixed:,.0f} rows"
    yield "planned effect found in at least 80% within twice the sample", measured, bool(power >= 0.8)


def run_case(task: tuple[Case, float, int]) -> Outcome:
    """Simulate one case, with equal arms or with a better one."""
    case, better, runs = task
    rows = max(ROWS, int(2 * find_fixed_sample(case))) if better else ROWS
    return simulate(case, better, runs, CASES.index(case), rows)


def print_targets(name: str, targets: Iterator[tuple[str, str, bool]]) -> bool:
    """Print the targets of a case; returns whether all are met."""
    met = True
    for target, measured, is_met in targets:
        print(f"{name:28} {target:60} {measured:46} {'met' if is_met else 'MISSED'}", flush=True)
        met &= is_met
    return met


def main(words: Sequence[str] | None = None) -> int:
    """Print the targets and what was measured; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    asked = parser.parse_args(words)
    tasks = [(case, better, asked.runs) for case in CASES for better in (0.0, EFFECT_SIZE)]
    with ProcessPoolExecutor(2) as pool:
        outcomes = list(pool.map(run_case, tasks))
    pairs = zip(CASES, outcomes[::2], outcomes[1::2], strict=True)
    met = [print_targets(case.name, judge(case, equal, better)) for case, equal, better in pairs]
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
