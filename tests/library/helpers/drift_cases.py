"""Kinds of tables, with and without drift, each with the target that the drift check must meet on it.

`tests/benchmarks/drift_power.py` measures all of them; `tests/library/monitoring/test_drift_rates.py` some, on fewer
windows. Every window has its own reference, so a rate is an average over both.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from flywheel_ml.core import profile
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.params import MonitorParams
from flywheel_ml.core.profile import Profile
from flywheel_ml.monitoring.drift import Drift, detect_drift
from flywheel_ml.monitoring.sources.packing import pack, unpack_profile
from flywheel_ml.monitoring.window import Window
from library.helpers import drift_tables as tables
from library.helpers.drift_tables import Group, categories, correlated, listed, mixed, numbers, texts

TRAINING = 70 / 15
"""Training rows for each row of the reference, which are the test rows."""
HOURS = 24
DEFAULTS = MonitorParams()
ENOUGH_WINDOWS = 1000
"""From this number on, a rate beyond its target is missed, whether or not chance explains it."""

Columns = dict[str, np.ndarray]


class Target(NamedTuple):
    """The share of windows that are called drift: at most or at least `rate`."""

    bound: Literal["at most", "at least"]
    rate: float

    def __str__(self) -> str:
        return f"{self.bound} {100 * self.rate:g}%"

    def is_met(self, found: int, windows: int) -> bool:
        return found <= self.rate * windows if self.bound == "at most" else found >= self.rate * windows

    def is_missed(self, found: int, windows: int) -> bool:
        """Whether the rate is beyond the target, and by chance alone would be in less than 1% of small studies."""
        if self.is_met(found, windows):
            return False
        return windows >= ENOUGH_WINDOWS or self.explain_by_chance(found, windows) < 0.01

    def explain_by_chance(self, found: int, windows: int) -> float:
        """The probability of a result as far beyond the target, if the true rate equals the target."""
        side: Literal["greater", "less"] = "greater" if self.bound == "at most" else "less"
        return float(stats.binomtest(found, windows, self.rate, alternative=side).pvalue)


CLEAN = Target("at most", 0.018)
"""A rate of 1% gives more than 1.8% in one of 145 studies of 1,000 windows."""
IRRELEVANT = Target("at most", 0.01)
OFTEN, ALWAYS = Target("at least", 0.9), Target("at least", 0.99)


class Case(NamedTuple):
    """A kind of table, the rows of reference and window, and the target; `hourly`: the window is read from profiles."""

    kind: str
    name: str
    reference: int
    window: int
    target: Target
    groups: tuple[Group, ...]
    hourly: bool = False


class Drawn(NamedTuple):
    """A reference, and the rows and predictions of a window."""

    contract: Contract
    reference: Profile
    columns: Columns
    prediction: np.ndarray


def draw(case: Case, seed: int) -> Drawn:
    """Draw one window of a case and its reference."""
    rng = np.random.default_rng(seed)
    contract, training, before, after = [], {}, {}, {}
    for at, group in enumerate(case.groups):
        older = group.draw(rng, int(TRAINING * case.reference), "training") if group.is_trained else None
        old, new = group.draw(rng, case.reference, "reference"), group.draw(rng, case.window, "window")
        for place, values in enumerate(old):
            name = f"x{at}.{place}"
            unknown = 0.02 if group.listed else 0.0
            contract.append(
                Column(name=name, type=group.kind, nullable=True, categories=group.listed, max_unknown_share=unknown)
            )
            before[name], after[name] = values, new[place]
            training[name] = values if older is None else older[place]
    drawn = Contract(name="drawn", columns=(*contract, Column(name="y", type="boolean", role="target")))
    reference = profile.build(drawn, before, rng.random(case.reference), training=training)
    return Drawn(drawn, reference, after, rng.random(case.window))


def compare_rows(drawn: Drawn, params: MonitorParams = DEFAULTS) -> Drift:
    """The comparison of the rows."""
    counted = profile.count(drawn.reference, drawn.columns, drawn.prediction)
    return detect_drift(drawn.reference, counted, params)


def compare_hours(drawn: Drawn) -> Iterator[Drift]:
    """The comparisons of 24 hourly profiles: merged, and packed, added and unpacked as the store does."""
    rows = len(drawn.prediction)
    # Hours of different sizes, the first of them empty.
    cuts = [0, *(int(rows * (hour / HOURS) ** 1.5) for hour in range(HOURS)), rows]
    hours = [
        profile.count(drawn.reference, {k: v[a:b] for k, v in drawn.columns.items()}, drawn.prediction[a:b])
        for a, b in pairwise(cuts)
    ]
    packed = np.sum([pack(make_window(hour), drawn.contract) for hour in hours], axis=0)
    for found in (profile.merge(hours), unpack_profile(packed, rows, drawn.reference)):
        yield detect_drift(drawn.reference, found, DEFAULTS)


def make_window(counted: Profile) -> Window:
    """A window without labels and times."""
    none = np.empty(0)
    return Window("drawn", counted, counted.rows, 0, {}, {}, {}, None, None, "", none, none, {})


FEW, MANY = (5_000, 1_000), (50_000, 50_000)
"""Rows of the reference and of the window."""

CASES = (
    Case("independent numbers", "no drift", *FEW, CLEAN, (numbers(),)),
    Case("independent numbers", "0.20 σ in one column", *FEW, OFTEN, (numbers(moved=0.2),)),
    Case("independent numbers", "0.25 σ in one column", *FEW, ALWAYS, (numbers(moved=0.25),)),
    Case("independent numbers", "0.03 σ in all columns", *MANY, IRRELEVANT, (numbers(moved=0.03, affected=20),)),
    Case("unseen values", "no drift, 120 texts", 450, 1_000, CLEAN, (numbers(), texts(120))),
    Case("unseen values", "no drift, 800 texts", 450, 1_000, CLEAN, (numbers(), texts(800))),
    Case("unseen values", "no drift, 20,000 texts", *FEW, CLEAN, (numbers(), texts(20_000))),
    Case("unseen values", "15% of a new text", 450, 1_000, ALWAYS, (numbers(), texts(800, fresh=0.15))),
    Case("unseen values", "no drift, listed categories", *FEW, CLEAN, (numbers(), listed())),
    Case("unseen values", "10% of a category not listed", *FEW, ALWAYS, (numbers(), listed(fresh=0.1))),
    Case("unseen values", "3% of a category not listed", *MANY, IRRELEVANT, (listed(fresh=0.03),)),
    Case("ties", "no drift, integers", *FEW, CLEAN, (numbers(tables.draw_integers),)),
    Case("ties", "no drift, one decimal", *FEW, CLEAN, (numbers(tables.draw_rounded),)),
    Case("ties", "no drift, 60% zeros", *FEW, CLEAN, (numbers(tables.draw_spike),)),
    Case("ties", "no drift, booleans", *FEW, CLEAN, (numbers(tables.draw_flags),)),
    Case("ties", "60% to 70% zeros in one column", *FEW, OFTEN, (numbers(tables.draw_spike, moved=0.1),)),
    Case("ties", "50% to 60% true in one column", *FEW, OFTEN, (numbers(tables.draw_flags, moved=0.1),)),
    Case("categories", "no drift, 2 levels", *FEW, CLEAN, (categories(2),)),
    Case("categories", "no drift, 8 equal levels", *FEW, CLEAN, (categories(8, exponent=0.0),)),
    Case("categories", "no drift, 200 levels", *FEW, CLEAN, (categories(200),)),
    Case("categories", "10 points more of one of 8", *FEW, ALWAYS, (categories(8, 0.1, exponent=0.0),)),
    Case("categories", "10 points more of one of 200", *FEW, OFTEN, (categories(200, 0.1),)),
    Case("categories", "3 points more of one of 8", *MANY, IRRELEVANT, (categories(8, 0.03, exponent=0.0, count=5),)),
    Case("missing values", "no drift, 1% missing", *FEW, CLEAN, (numbers(gaps=(0.01, 0.01)),)),
    Case("missing values", "5% to 15% in one column", *FEW, ALWAYS, (numbers(gaps=(0.05, 0.15)),)),
    Case("missing values", "none to 10% in one column", *FEW, ALWAYS, (numbers(gaps=(0.0, 0.1)),)),
    Case("missing values", "5% to 7% in one column", *MANY, IRRELEVANT, (numbers(gaps=(0.05, 0.07), count=5),)),
    Case("correlated numbers", "no drift, 20 columns", *FEW, CLEAN, (correlated(),)),
    Case("correlated numbers", "no drift, 4 blocks of 5", *FEW, CLEAN, (correlated(4),)),
    Case("correlated numbers", "0.25 σ in one of 20 columns", *FEW, ALWAYS, (correlated(4, moved=0.25),)),
    Case("heavy tails", "no drift, Student's t (2)", *FEW, CLEAN, (numbers(tables.draw_student),)),
    Case("heavy tails", "no drift, lognormal", *FEW, CLEAN, (numbers(tables.draw_lognormal),)),
    Case("heavy tails", "t moved by 0.3", *FEW, ALWAYS, (numbers(tables.draw_student, moved=0.3),)),
    Case("sizes", "no drift, a small window", 5_000, 200, CLEAN, (numbers(),)),
    Case("sizes", "0.6 σ, a small window", 5_000, 200, OFTEN, (numbers(moved=0.6),)),
    Case("sizes", "no drift, a large window", 1_000, 50_000, CLEAN, (numbers(),)),
    Case("sizes", "no drift, a small reference", 200, 1_000, CLEAN, (numbers(),)),
    Case("24 hourly profiles", "no drift, a mixed table", *FEW, CLEAN, mixed(), hourly=True),
    Case("24 hourly profiles", "0.25 σ in one column", *FEW, ALWAYS, mixed(moved=0.25), hourly=True),
)
"""The first eight keep their places: the seeds depend on them."""
