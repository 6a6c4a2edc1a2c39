"""Profiles: counts that merge exactly, on bins fine enough to test on."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flywheel_ml.core import profile
from flywheel_ml.core.contract import Column, Columns, Contract, columns_from_rows
from flywheel_ml.core.profile import PREDICTION, Profile
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError

CONTRACT: dict[str, Any] = {
    "name": "all types",
    "columns": [
        {"name": "at", "type": "datetime", "role": "time"},
        {"name": "size", "type": "float", "nullable": True},
        {"name": "count", "type": "integer", "nullable": True},
        {"name": "new", "type": "boolean", "nullable": True},
        {"name": "colour", "type": "string", "nullable": True, "categories": ["red", "blue"], "max_unknown_share": 0.5},
        {"name": "free", "type": "string", "nullable": True},
        {"name": "sold", "type": "boolean", "role": "target"},
    ],
}
THINGS = config_model.parse(CONTRACT, Contract, "contract.yaml")


def one_column(reference: np.ndarray, window: np.ndarray) -> float:
    """KS distance of two samples as a profile sees them."""
    built = profile.build(_only_size, {"size": reference}, np.zeros(len(reference)))
    counted = profile.count(built, {"size": window})
    a, b = (np.cumsum(np.array(one.columns["size"].counts)) for one in (built, counted))
    return float(np.abs(a / a[-1] - b / b[-1]).max())


def exact(reference: Any, window: Any) -> float:
    with np.errstate(divide="ignore"):  # SciPy's p-value of two single rows.
        return float(stats.ks_2samp(reference, window, method="asymp").statistic)


_only_size = config_model.parse(
    {"name": "one", "columns": [CONTRACT["columns"][1], CONTRACT["columns"][-1]]}, Contract, "contract.yaml"
)

SAMPLES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "continuous": lambda rng, n: rng.normal(size=n),
    "mostly zero": lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.05),
    "two values": lambda rng, n: (rng.random(n) < 0.3).astype(float),
    "one value": lambda _, n: np.full(n, 10.0),
    "integers": lambda rng, n: rng.poisson(3, n).astype(float),
    "multiples of ten": lambda rng, n: 10.0 * rng.integers(0, 37, n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n) * 1e6,
    "rounded": lambda rng, n: rng.normal(size=n).round(2),
}
SHIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "a hair down": lambda x: np.nextafter(x, -np.inf),
    "a hair up": lambda x: np.nextafter(x, np.inf),
    "a little down": lambda x: x - 0.001,
    "a little up": lambda x: x + 0.001,
    "far down": lambda x: x - 1e7,
    "stretched": lambda x: 1.3 * x,
    "one value": lambda x: np.full_like(x, x.max()),
    "below all": lambda x: np.full_like(x, np.nextafter(x.min(), -np.inf)),
}


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("n", [300, 5000])
def test_a_ks_distance_on_bins_is_within_0_005_of_the_exact_one(sample: str, shift: str, n: int) -> None:
    rng = np.random.default_rng(7)
    reference = SAMPLES[sample](rng, n)
    window = SHIFTS[shift](SAMPLES[sample](rng, n // 2))
    assert abs(one_column(reference, window) - exact(reference, window)) <= 0.005


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.5, 10.0]) | st.floats(-1e6, 1e6), min_size=1, max_size=400),
    st.lists(st.sampled_from([0.0, 1.0, 2.5, 9.99]) | st.floats(-1e6, 1e6), min_size=1, max_size=100),
)
def test_the_distance_holds_for_any_values(reference: list[float], window: list[float]) -> None:
    assert abs(one_column(np.array(reference), np.array(window)) - exact(reference, window)) <= 0.005


some_rows = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1)),
            "size": st.none() | st.floats(),
            "count": st.none() | st.integers(-3, 3),
            "new": st.none() | st.booleans(),
            "colour": st.none() | st.sampled_from(["red", "blue", "green", ""]),
            "free": st.none() | st.text(max_size=3),
        }
    ),
    max_size=20,
)


def reference_rows(n_rows: int = 300) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return columns_from_rows(
        THINGS.inputs,
        [
            {
                "at": datetime(2013, 1, 1) + timedelta(minutes=int(rng.integers(0, 500_000))),
                "size": None if at % 7 == 0 else float(rng.normal()),
                "count": int(rng.integers(0, 5)),
                "new": bool(at % 3),
                "colour": ("red", "blue", "green", None)[at % 4],
                "free": f"text {at % 5}",
            }
            for at in range(n_rows)
        ],
    )


REFERENCE = profile.build(THINGS, reference_rows(), np.linspace(0, 1, 300))


def count(rows: list[dict[str, Any]]) -> Profile:
    return profile.count(REFERENCE, columns_from_rows(THINGS.inputs, rows), np.linspace(0, 1, len(rows)))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(some_rows, some_rows, some_rows)
def test_merging_is_exact_and_its_order_does_not_matter(a: Any, b: Any, c: Any) -> None:
    scores = np.linspace(0, 1, len(a) + len(b) + len(c))
    parts = []
    for rows, first in ((a, 0), (b, len(a)), (c, len(a) + len(b))):
        columns = columns_from_rows(THINGS.inputs, rows)
        parts.append(profile.count(REFERENCE, columns, scores[first : first + len(rows)]))
    whole = profile.count(REFERENCE, columns_from_rows(THINGS.inputs, [*a, *b, *c]), scores)
    assert profile.merge(parts) == whole
    assert profile.merge([profile.merge(parts[:2]), parts[2]]) == whole
    assert profile.merge([parts[0], profile.merge(parts[1:])]) == whole
    assert profile.merge(reversed(parts)) == whole


@settings(derandomize=True, deadline=None, max_examples=50)
@given(some_rows)
def test_every_row_is_counted_once_in_every_column(rows: list[dict[str, Any]]) -> None:
    counted = count(rows)
    assert counted.rows == len(rows)
    for name, counts in counted.columns.items():
        assert counts.rows == len(rows), name
        assert len(counts.counts) == (len(counts.edges) + 1 if counts.kind == "numeric" else len(counts.categories))


def test_a_profile_reads_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(REFERENCE.text(), encoding="utf-8")
    assert Profile.load(tmp_path / "profile.json") == REFERENCE
    assert Profile.load(tmp_path / "profile.json").text() == REFERENCE.text()


def test_the_reference_counted_in_its_own_bins_is_the_reference() -> None:
    assert profile.count(REFERENCE, reference_rows(), np.linspace(0, 1, 300)) == REFERENCE


def test_contract_categories_come_first_and_others_are_unseen() -> None:
    counts = count([{"colour": "red"}, {"colour": "green"}, {"colour": ""}, {}]).columns["colour"]
    assert (counts.categories, counts.counts, counts.unseen, counts.missing) == (("red", "blue"), (1, 0), 2, 1)


def test_without_categories_those_of_the_reference_are_known() -> None:
    counts = count([{"free": "text 1"}, {"free": "new"}, {"free": "text 1\x00"}]).columns["free"]
    assert counts.categories == tuple(f"text {at}" for at in range(5))
    assert (sum(counts.counts), counts.unseen) == (1, 2)


def test_only_the_most_frequent_of_many_texts_are_known() -> None:
    texts = [f"id {at}" for at in range(profile.MAX_CATEGORIES)] + ["often"] * 5 + ["twice"] * 2
    columns = {**reference_rows(len(texts)), "free": np.array(texts, dtype=object)}
    counts = profile.build(THINGS, columns, np.zeros(len(texts))).columns["free"]
    assert len(counts.categories) == profile.MAX_CATEGORIES
    assert {"often", "twice"} <= set(counts.categories)
    assert counts.unseen == 2


def test_very_long_texts_cost_no_more_than_themselves() -> None:
    columns = {**reference_rows(20_000), "free": np.array(["a", "x" * 1_000_000] * 10_000, dtype=object)}
    assert profile.count(REFERENCE, columns).columns["free"].unseen == 20_000


def test_timestamps_are_also_counted_by_hour() -> None:
    counts = count([{"at": datetime(2090, 1, 1, 12, 30)}]).columns
    assert counts["at"].counts[-1] == 1
    assert counts["at.hour"].counts[-1] == 0
    assert counts["at.hour"].present == 1


def test_infinities_fall_into_the_outermost_bins() -> None:
    counts = count([{"size": float("inf")}, {"size": float("-inf")}]).columns["size"].counts
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 2)


def test_a_column_without_values_has_a_profile() -> None:
    columns = {**reference_rows(10), "size": np.full(10, np.nan)}
    built = profile.build(THINGS, columns, np.full(10, np.nan))
    assert (built.columns["size"].missing, built.columns[PREDICTION].missing) == (10, 10)
    assert profile.count(built, reference_rows(10)).columns["size"].present == 8


def test_columns_that_are_not_there_are_left_out() -> None:
    assert profile.count(REFERENCE, {"size": np.array([1.0])}).columns.keys() == {"size"}


def test_merged_bins_keep_the_counts() -> None:
    counts = REFERENCE.columns["count"]
    merged = counts.merge_bins()
    assert merged.edges == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert len(counts.edges) == 10
    assert sum(merged.counts) == counts.present
    assert merged.counts[0] == counts.counts[0] + counts.counts[1]
    assert merged.merge_bins() == merged


def test_profiles_of_different_bins_or_columns_are_not_merged() -> None:
    other = profile.build(THINGS, {**reference_rows(), "size": np.arange(300.0)}, np.linspace(0, 1, 300))
    with pytest.raises(ConfigError, match="column 'size' was counted in different bins"):
        profile.merge([REFERENCE, other])
    with pytest.raises(ConfigError, match="profiles of different columns"):
        profile.merge([REFERENCE, profile.count(REFERENCE, {"size": np.array([1.0])})])
    with pytest.raises(ConfigError, match="nothing to merge"):
        profile.merge([])


def test_the_project_s_table_has_a_profile_with_fine_bins(columns: Columns, contract: Contract) -> None:
    scores = np.linspace(0, 1, len(next(iter(columns.values()))))
    built = profile.build(contract, columns, scores)
    assert {column.name for column in contract.inputs} <= built.columns.keys()
    assert len(built.columns[PREDICTION].edges) >= 200


def test_categories_are_known_from_the_training_rows() -> None:
    training = reference_rows()
    columns = {name: values.copy() for name, values in reference_rows(60).items()}
    columns["free"][:6] = "rare"
    training["colour"][training["colour"] == "red"] = None
    built = profile.build(THINGS, columns, np.zeros(60), training=training)
    assert built.columns["free"].categories == tuple(f"text {at}" for at in range(5))
    assert (built.columns["free"].unseen, built.columns["free"].unknown) == (6, 6)
    colour = built.columns["colour"]
    # `red` is a category of the contract, and no model has met it.
    assert (colour.categories, colour.untrained, colour.known) == (("red", "blue"), ("red",), (15,))
    assert (colour.unseen, colour.unknown) == (15, 30)
    assert config_model.parse(json.loads(built.text()), Profile, "profile.json") == built


def build_profile(values: np.ndarray, texts: list[str], previous: profile.Bins | None = None) -> profile.Profile:
    """Profile a number and an unlisted text."""
    columns = (
        Column(name="x", type="float"),
        Column(name="text", type="string"),
        Column(name="y", type="boolean", role="target"),
    )
    inputs = {"x": values, "text": np.resize(np.array(texts, dtype=object), len(values))}
    return profile.build(Contract(name="drawn", columns=columns), inputs, np.zeros(len(values)), previous=previous)


def test_bins_are_kept_while_they_resolve_the_rows() -> None:
    rng = np.random.default_rng(0)
    first = build_profile(rng.normal(size=20_000), ["a", "b", "c"])
    second = build_profile(rng.normal(0.1, 1, 20_000), ["a", "c"], first.bins)
    assert second.bins == first.bins
    assert second.columns["text"].untrained == ("b",)
    assert second.columns["x"].present == 20_000
    assert build_profile(rng.normal(size=20_000), ["a"]).bins.columns["x"] != first.bins.columns["x"]


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).normal(4, 1, 20_000),
        np.random.default_rng(1).normal(0, 0.01, 20_000),
        np.append(np.random.default_rng(1).normal(size=20_000), np.full(500, 0.1234)),
    ],
    ids=["moved", "narrower", "a repeated value"],
)
def test_bins_are_replaced_when_they_no_longer_resolve(values: np.ndarray) -> None:
    first = build_profile(np.random.default_rng(0).normal(size=20_000), ["a"])
    found = build_profile(values, ["a"], first.bins)
    assert found == build_profile(values, ["a"])
    assert found.bins.columns["text"] == first.bins.columns["text"]


def test_new_category_replaces_the_categories() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    first = build_profile(values, ["a", "b"])
    assert build_profile(values, ["a", "new"], first.bins).columns["text"].categories == ("a", "new")


def test_broken_bins_are_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "profile_bins.json"
    for text in ("{", "[]", '{"format":1}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"profile_bins\.json"):
            profile.Bins.load(path)


def test_category_that_the_contract_dropped_counts_as_unseen() -> None:
    def build(categories: tuple[str, ...], previous: profile.Bins | None = None) -> profile.Profile:
        kind = Column(name="kind", type="string", categories=categories)
        contract = Contract(name="t", columns=(kind, Column(name="y", type="boolean", role="target")))
        values = np.array(["a", "b", "c"] * 100, dtype=object)
        return profile.build(contract, {"kind": values}, np.zeros(300), previous=previous)

    first = build(("a", "b", "c"))
    assert build(("a", "b"), first.bins).columns["kind"].unseen == 100
