"""Inference of a contract: every decision has a reason, every issue a name, every option an effect."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets

from flywheel_ml.core.contract import SCORE_COLUMNS
from flywheel_ml.data import split
from flywheel_ml.data.adoption import columns, issues, name_heuristics
from flywheel_ml.data.adoption.detection.detected import TEXT
from flywheel_ml.data.adoption.profiling import ColumnProfile
from flywheel_ml.utils.errors import ConfigError, DataError
from library.helpers.adoption_helpers import find_column, find_role, issue_set, make_shop_table, propose

ROWS = 400
RNG = np.random.default_rng(2)
MOMENTS = [datetime(2023, 1, 1) + timedelta(hours=at) for at in range(ROWS)]


@pytest.mark.parametrize(
    ("name", "task", "classes"),
    [
        ("iris", "multiclass", [0, 1, 2]),
        ("wine", "multiclass", [0, 1, 2]),
        ("digits", "multiclass", list(range(10))),
        ("breast_cancer", "binary", [0, 1]),
        ("diabetes", "regression", None),
    ],
)
def test_real_tables_get_their_known_tasks(tmp_path: Path, name: str, task: str, classes: list[int] | None) -> None:
    bunch = getattr(datasets, f"load_{name}")()
    table = pl.DataFrame(bunch.data, schema=list(map(str, bunch.feature_names)))
    found = propose(table.with_columns(target=pl.Series(bunch.target)), "target", tmp_path)
    assert found.task == task
    assert find_column(found, "target").get("categories") == classes
    assert found.split == {"by": "hash", "validation_share": 0.15, "test_share": 0.15}
    assert not [issue for issue in found.issues if issue.severity == "refused" or issue.kind == "leakage"]
    for column in table.columns:
        low, high = find_column(found, column).get("range", (-np.inf, np.inf))
        assert low <= table[column].min() <= table[column].max() <= high, column  # type: ignore[operator]


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([True, False], "binary", None),
        (["yes", "no"], "binary", ["no", "yes"]),
        (["pass", "fail"], "binary", ["pass", "fail"]),
        (["b", "a", "b"], "binary", ["b", "a"]),
        ([1, 2], "binary", [1, 2]),
        ([1.0, 0.0, None], "binary", [0, 1]),
        (["a", "b", "c"], "multiclass", ["a", "b", "c"]),
        ([3, 4, 5], "multiclass", [3, 4, 5]),
        (list(range(50)), "regression", None),
        ([0.5, 1.5], "regression", None),
    ],
)
def test_the_target_decides_the_task(tmp_path: Path, values: list[Any], task: str, classes: list[Any] | None) -> None:
    found = propose(make_shop_table(ROWS, y=[values[at % len(values)] for at in range(ROWS)]), "y", tmp_path)
    assert (found.task, find_column(found, "y").get("categories")) == (task, classes)


def test_many_numbers_are_regression_and_name_the_option(tmp_path: Path) -> None:
    table = make_shop_table(ROWS, y=[at % 30 for at in range(ROWS)])
    assert "--task multiclass" in next(
        found.why
        for found in propose(table, "y", tmp_path).decisions
        if found.what.startswith("task") or "regression" in found.what
    )
    assert propose(table, "y", tmp_path, task="multiclass").task == "multiclass"


def test_a_column_is_an_input_by_its_type_and_few_values(tmp_path: Path) -> None:
    table = make_shop_table(
        ROWS,
        gift=[(True, False, None)[at % 3] for at in range(ROWS)],
        age=RNG.integers(18, 90, ROWS),
        flag=RNG.integers(0, 2, ROWS),
        share=RNG.random(ROWS),
        loss=-RNG.random(ROWS),
        email=[f"{at}@example.org" for at in range(ROWS)],
    )
    found = propose(table, "bought", tmp_path)
    assert find_column(found, "gift") == {"name": "gift", "type": "boolean", "nullable": True}
    assert find_column(found, "age") == {"name": "age", "type": "integer", "range": [0, 125]}
    assert find_column(found, "flag") == {"name": "flag", "type": "integer", "range": [0, 1]}
    assert find_column(found, "share")["range"] == [0, 1.5]
    assert find_column(found, "loss")["range"] == [-1.5, 0]
    assert find_column(found, "shelf")["categories"] == ["left", "middle", "right"]
    assert find_column(found, "email") == {"name": "email", "type": "string", "role": "ignored", "personal": True}
    assert found.slices == ("shelf", "gift")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2, unique=True))
def test_range_is_wider_than_seen_and_does_not_cross_zero(ends: list[float]) -> None:
    low, high = sorted(ends)
    parse = TEXT._replace(type="float")
    limits = columns.choose_range(ColumnProfile("x", parse, 0, 0, (), low, high, 2, False, None, 0))
    assert limits is not None
    assert limits[0] <= low <= high <= limits[1]
    assert not low >= 0 > limits[0]
    assert not high <= 0 < limits[1]


def test_texts_with_many_values_become_words_or_target_means(tmp_path: Path) -> None:
    note = [f"the quick brown {at} jumps" for at in range(ROWS * 2)]
    found = propose(
        make_shop_table(ROWS * 2, note=note, town=[f"t{at % 200}" for at in range(ROWS * 2)]), "bought", tmp_path
    )
    assert find_column(found, "note") == {"name": "note", "type": "string", "free_text": True}
    assert find_column(found, "town") == {"name": "town", "type": "string"}
    assert {("free text", "note", "handled"), ("many values", "town", "handled")} <= issue_set(found.issues)


def test_datetime_features_follow_span_and_precision(tmp_path: Path) -> None:
    days = [datetime(2020, 1, 1) + timedelta(days=4 * at) for at in range(ROWS)]
    found = propose(make_shop_table(ROWS, at=days, born=[*MOMENTS[1:], None]), "bought", tmp_path)
    assert find_column(found, "at")["datetime_features"] == ["weekday", "year_cycle"]
    assert find_column(found, "born")["datetime_features"] == ["hour", "weekday", "elapsed"]
    assert "dates without a time of day; 4 years" in next(told.why for told in found.decisions if told.column == "at")


def test_a_time_that_every_row_has_splits_the_table(tmp_path: Path) -> None:
    table = make_shop_table(ROWS, born=MOMENTS, created_at=MOMENTS, seen=[*MOMENTS[1:], None])
    found = propose(table, "bought", tmp_path)
    assert found.split["by"] == "time"
    assert [find_role(found, name) for name in ("born", "created_at", "seen")] == ["feature", "time", "feature"]


@pytest.mark.parametrize(
    "moments",
    [[MOMENTS[0]] * ROWS, [*MOMENTS[1:], None], [moment + timedelta(days=9999) for moment in MOMENTS]],
    ids=["one", "gap", "future"],
)
def test_a_time_that_cannot_be_trusted_does_not(tmp_path: Path, moments: list[datetime | None]) -> None:
    assert propose(make_shop_table(ROWS, at=pl.Series(moments)), "bought", tmp_path).split["by"] == "hash"


def test_rows_of_one_entity_stay_together(tmp_path: Path) -> None:
    table = make_shop_table(ROWS, customer_id=RNG.integers(0, 150, ROWS), patient_age=RNG.integers(0, 90, ROWS))
    found = propose(table, "bought", tmp_path)
    assert found.split["group"] == "customer_id"
    assert find_role(found, "customer_id") == "ignored"
    assert find_role(found, "patient_age") == "feature"


def test_id_is_not_an_input(tmp_path: Path) -> None:
    table = make_shop_table(
        ROWS, order_id=range(1000, 1000 + ROWS), uuid=[f"u{at}" for at in range(ROWS)], row=range(ROWS)
    )
    found = propose(table, "bought", tmp_path)
    assert [find_role(found, name) for name in ("order_id", "uuid", "row")] == ["id", "ignored", "ignored"]
    assert ("row counter", "row", "handled") in issue_set(found.issues)


def gaps(count: int) -> list[int]:
    """Increasing numbers as of rows that were left over."""
    return [at + at // 3 for at in range(count)]


@pytest.mark.parametrize(
    ("name", "numbers", "became"),
    [
        ("Unnamed: 0", gaps(ROWS), "ignored"),
        ("column_1", gaps(ROWS), "ignored"),
        ("__index_level_0__", gaps(ROWS), "ignored"),
        ("...1", gaps(ROWS)[::-1], "ignored"),
        ("rownames", list(range(1, ROWS + 1)), "ignored"),
        ("index", gaps(ROWS), "ignored"),
        ("X", gaps(ROWS), "ignored"),
        ("Unnamed: 0", RNG.permutation(gaps(ROWS)).tolist(), "ignored"),
        ("Unnamed: 0", [*range(ROWS // 2)] * 2, "ignored"),
        ("Unnamed: 0", [at % 7 for at in range(ROWS)], "feature"),
        ("X", RNG.permutation(gaps(ROWS)).tolist(), "feature"),
        ("V1", [at // 2 for at in range(ROWS)], "feature"),
        ("income", gaps(ROWS), "feature"),
    ],
)
def test_row_counter_is_not_an_input(tmp_path: Path, name: str, numbers: list[int], became: str) -> None:
    table = make_shop_table(ROWS)
    found = propose(table.select(pl.Series(name, numbers), pl.all()), "bought", tmp_path)
    assert find_role(found, name) == became
    assert (("row counter", name, "handled") in issue_set(found.issues)) == (became == "ignored")
    if became == "ignored":
        assert find_role(
            propose(table.with_columns(pl.Series(name, numbers)), "bought", tmp_path, feature=(name,)), name
        ) == ("feature")


def test_sample_weights_are_not_an_input(tmp_path: Path) -> None:
    table = make_shop_table(ROWS, sample_weight=RNG.random(ROWS) + 0.5, weight=RNG.random(ROWS) + 60)
    found = propose(table, "bought", tmp_path)
    assert find_column(found, "sample_weight") == {"name": "sample_weight", "type": "float", "role": "weight"}
    assert ("sample weights", "sample_weight", "handled") in issue_set(found.issues)
    # A person's or a car's weight has that name too: asked about, not taken.
    assert find_role(found, "weight") == "feature"
    assert "--weight weight" in next(one.why for one in found.decisions if one.column == "weight")
    other = propose(table, "bought", tmp_path, weight="weight")
    assert [find_role(other, name) for name in ("sample_weight", "weight")] == ["ignored", "weight"]
    assert find_role(propose(table, "bought", tmp_path, feature=("sample_weight",)), "sample_weight") == "feature"


@pytest.mark.parametrize("cells", [["a", "b"], [-1.0, 2.0], [None, 1.0]], ids=["text", "negative", "missing"])
def test_invalid_weight_column_is_rejected(tmp_path: Path, cells: list[Any]) -> None:
    table = make_shop_table(ROWS, weights=cells * (ROWS // 2))
    assert find_role(propose(table, "bought", tmp_path), "weights") == "feature"
    with pytest.raises(
        ConfigError, match=r"--weight: 'weights' cannot weigh rows; every row needs a number of 0 or more"
    ):
        propose(table, "bought", tmp_path, weight="weights")


def test_class_in_newest_rows_only_is_reported_and_split_by_hash(tmp_path: Path) -> None:
    late = pl.when(pl.int_range(ROWS) < ROWS - 30).then("bought").otherwise(pl.lit("returned"))
    table = make_shop_table(ROWS, at=MOMENTS).with_columns(bought=late)
    found = propose(table, "bought", tmp_path)
    assert found.split["by"] == "hash"
    assert find_role(found, "at") == "time"
    assert ("late class", "bought", "warned") in issue_set(found.issues)
    # Both ways out that are named lead on.
    assert ("late class", "bought", "refused") in issue_set(propose(table, "bought", tmp_path, split="time").issues)
    dropped = propose(table.filter(pl.col("bought") != "returned"), "bought", tmp_path, split="time")
    assert dropped.split["by"] == "time"
    assert "late class" not in {issue.kind for issue in dropped.issues}


def test_class_without_training_group_is_rejected(tmp_path: Path) -> None:
    customers = np.arange(ROWS) // 8
    of_tests = next(one for one in range(50) if split.hash_to_unit_interval(pl.Series([one])).item() > 0.85)
    table = make_shop_table(ROWS, customer_id=customers)
    labels = np.where(customers == of_tests, "odd", table["bought"].to_numpy())
    table = table.with_columns(bought=pl.Series(labels))
    found = propose(table, "bought", tmp_path)
    assert ("class of few groups", "bought", "refused") in issue_set(found.issues)
    by_row = propose(table, "bought", tmp_path, ignore=("customer_id",))
    assert "refused" not in {issue.severity for issue in by_row.issues}


@pytest.mark.parametrize("target", ["bought", "answer"])
def test_labels_that_differ_only_in_case_or_blanks_are_reported(tmp_path: Path, target: str) -> None:
    answers = ["Yes", "yes", "No", "no  answer", "No Answer"]
    found = propose(make_shop_table(ROWS, answer=[answers[at % 5] for at in range(ROWS)]), target, tmp_path)
    (issue,) = (issue for issue in found.issues if issue.kind == "labels alike")
    assert (issue.column, issue.severity) == ("answer", "warned")
    assert "'Yes' and 'yes'" in issue.evidence
    assert "'No Answer' and 'no  answer'" in issue.evidence


IssueKey = tuple[str, str, str]


@pytest.mark.parametrize(
    ("change", "issue", "became"),
    [
        (lambda t: t.with_columns(c=pl.col("bought")), ("leakage", "c", "handled"), "ignored"),
        (lambda t: t.with_columns(c=(pl.col("bought") == "buyer") * 3 + 0.5), ("leakage", "c", "handled"), "ignored"),
        (
            lambda t: t.with_columns(c=pl.when(pl.col("bought") == "buyer").then(pl.col("spent"))),
            ("leakage", "c", "handled"),
            "ignored",
        ),
        (lambda t: t.with_columns(c=pl.lit(None, pl.Float64)), ("all missing", "c", "handled"), "ignored"),
        (lambda t: t.with_columns(c=pl.lit(1.0)), ("constant", "c", "handled"), "ignored"),
        (lambda t: t.with_columns(c=(pl.int_range(pl.len()) == 7) * 5), ("near-constant", "c", "warned"), "feature"),
        (lambda t: pl.concat([t, t.head(5)]), ("duplicate rows", "", "warned"), ""),
        (
            lambda t: t.with_columns(bought=pl.when(pl.int_range(pl.len()) > 9).then(pl.col("bought"))),
            ("target missing", "bought", "handled"),
            "",
        ),
        (
            lambda t: t.with_columns(c=pl.format("the quick brown {} jumps", pl.int_range(pl.len()))),
            ("free text", "c", "handled"),
            "feature",
        ),
        (
            lambda t: t.with_columns(c=pl.format("k{}", pl.int_range(pl.len()) // 2)),
            ("many values", "c", "handled"),
            "ignored",
        ),
        (
            lambda t: t.with_columns(c=pl.Series([np.inf, 1e300, *RNG.random(t.height - 2)])),
            ("infinite or huge", "c", "handled"),
            "feature",
        ),
        (
            lambda t: t.with_columns(c=pl.Series(["oops", *map(str, RNG.random(t.height - 1))])),
            ("mixed types", "c", "handled"),
            "feature",
        ),
        (
            lambda t: t.with_columns(c=pl.Series(["oops", *map(str, range(19))] * (t.height // 20))),
            ("mixed types", "c", "warned"),
            "feature",
        ),
        (
            lambda t: t.with_columns(c=pl.Series(["1,234", "5,678"] * (t.height // 2))),
            ("ambiguous", "c", "warned"),
            "feature",
        ),
        (
            lambda t: t.with_columns(c=pl.Series([f"2023-01-{at % 28 + 1:02d}" for at in range(t.height)])),
            ("dates as texts", "c", "handled"),
            "time",
        ),
        (
            lambda t: t.with_columns(c=pl.Series(MOMENTS[::-1])),
            ("time runs backwards", "c", "handled"),
            "time",
        ),
        (
            lambda t: t.with_columns(c=pl.Series([datetime(2099, 1, 1), *MOMENTS[1:]])),
            ("future", "c", "warned"),
            "time",
        ),
        (
            lambda t: t.with_columns(at=pl.Series(MOMENTS), c=pl.Series(MOMENTS) + timedelta(days=1)),
            ("known too late", "c", "warned"),
            "feature",
        ),
        (lambda t: t.with_columns(c=pl.lit([1])), ("nested values", "c", "handled"), None),
        (lambda t: t.head(30), ("few rows", "", "warned"), ""),
        (lambda t: t.head(10), ("few rows", "", "refused"), ""),
        (
            lambda t: t.with_columns(bought=pl.Series(["rare", *t["bought"][1:]])),
            ("small class", "bought", "refused"),
            "",
        ),
        (
            lambda t: t.with_columns(bought=pl.Series(["rare"] * 9 + list(t["bought"][9:]))),
            ("small class", "bought", "warned"),
            "",
        ),
        (
            lambda t: t.with_columns(bought=pl.Series(["a"] * 3 + ["b"] * (t.height - 3))),
            ("imbalance", "bought", "warned"),
            "",
        ),
    ],
)  # fmt: skip
def test_issues_are_reported_before_training(
    tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], issue: IssueKey, became: str | None
) -> None:
    table = make_shop_table(ROWS)
    assert issue_set(propose(table, "bought", tmp_path).issues) == set()
    found = propose(change(table), "bought", tmp_path)
    assert issue in issue_set(found.issues)
    if became:
        assert find_role(found, issue[1]) == became
    assert (became is None) == ("c" in change(table).columns and "c" not in [c["name"] for c in found.columns])


@pytest.mark.parametrize("target", ["number", "kind"])
def test_leaks_are_found_for_numbers_and_many_classes_too(tmp_path: Path, target: str) -> None:
    number = RNG.normal(size=ROWS)
    kind = RNG.choice(["a", "b", "c"], ROWS)
    table = pl.DataFrame(
        {
            "honest": number + RNG.normal(size=ROWS),
            "number": number,
            "kind": kind,
            "exponential": np.exp(number),
            "code": [{"a": 7, "b": 3, "c": 5}[value] for value in kind],
        }
    )
    leaks = {issue.column for issue in propose(table, target, tmp_path).issues if issue.kind == "leakage"}
    assert leaks == ({"exponential"} if target == "number" else {"code"})


@pytest.mark.parametrize(("rows", "severity"), [(60, "warned"), (189, "warned"), (1000, "handled")])
def test_threshold_in_one_column_is_leakage_at_any_size(rows: int, severity: str) -> None:
    rng = np.random.default_rng(rows)
    grams = rng.normal(2900, 700, rows)
    table = pl.DataFrame({"grams": grams, "age": rng.normal(size=rows), "low": grams < 2300})
    (leak,) = issues.detect_leakage(table, "low", ["grams", "age"], "binary")
    assert (leak.column, leak.severity, leak.evidence) == ("grams", severity, "ROC AUC 1.000 by itself")


def test_column_that_nearly_reveals_the_target_warns() -> None:
    rng = np.random.default_rng(0)
    accepted = rng.random(1000) < 0.7
    spent = np.where(accepted & (rng.random(1000) > 0.02), rng.exponential(100, 1000), 0.0)
    table = pl.DataFrame({"spent": spent, "card": accepted})
    (leak,) = issues.detect_leakage(table, "card", ["spent"], "binary")
    assert (leak.column, leak.severity) == ("spent", "warned")


@pytest.mark.parametrize("rows", [24, 60, 300])
def test_chance_is_not_reported_as_leakage(rows: int) -> None:
    rng = np.random.default_rng(rows)
    for share in (0.1, 0.5):
        table = pl.DataFrame({f"x{at}": rng.normal(size=rows) for at in range(200)})
        table = table.with_columns(kind=rng.integers(0, 5, rows), y=rng.permutation(rows) < max(2, share * rows))
        assert issues.detect_leakage(table, "y", [name for name in table.columns if name != "y"], "binary") == []


def test_noise_is_not_reported_as_leakage(tmp_path: Path) -> None:
    for rows in (60, 3000):
        table = pl.DataFrame({f"x{at}": RNG.normal(size=rows) for at in range(30)})
        table = table.with_columns(ids=pl.Series([f"s{at}" for at in range(rows)]), y=pl.Series(RNG.random(rows) < 0.3))
        labels = table["y"]
        assert (
            issues.detect_leakage(table, labels.name, [name for name in table.columns if name != "y"], "binary") == []
        )


@pytest.mark.parametrize("name", SCORE_COLUMNS)
def test_a_name_that_scoring_needs_is_changed(tmp_path: Path, name: str) -> None:
    found = propose(
        make_shop_table(ROWS, **{name: RNG.random(ROWS), f"{name}_given": RNG.random(ROWS)}), "bought", tmp_path
    )
    assert found.sources[f"{name}_given_"] == name
    assert found.sources[f"{name}_given"] == f"{name}_given"
    assert ("reserved name", f"{name}_given_", "handled") in issue_set(found.issues)


@pytest.mark.parametrize("name", ["two words", 'a "quote"', "größe", "class", "__proto__", "a,b", "0", "a\nb", "%"])
def test_any_name_may_be_that_of_a_column(tmp_path: Path, name: str) -> None:
    found = propose(make_shop_table(ROWS, **{name: RNG.random(ROWS)}), "bought", tmp_path)
    assert find_role(found, name) == "feature"
    assert propose(make_shop_table(ROWS, **{name: RNG.random(ROWS)}), name, tmp_path).task == "regression"


@pytest.mark.parametrize(
    ("said", "became"),
    [
        ({"ignore": ("shelf",)}, ("shelf", "ignored")),
        ({"feature": ("note",)}, ("note", "feature")),
        ({"feature": ("leak",)}, ("leak", "feature")),
        ({"id": "note"}, ("note", "id")),
        ({"time": "born"}, ("born", "time")),
        ({"time": "none"}, ("at", "feature")),
        ({"group": "shelf"}, ("shelf", "ignored")),
    ],
)
def test_option_overrides_a_role(tmp_path: Path, said: dict[str, Any], became: tuple[str, str]) -> None:
    table = make_shop_table(ROWS, at=MOMENTS, born=MOMENTS, note=[f"n{at}" for at in range(ROWS)])
    table = table.with_columns(leak=pl.col("bought"))
    assert find_role(propose(table, "bought", tmp_path), became[0]) != became[1]
    assert find_role(propose(table, "bought", tmp_path, **said), became[0]) == became[1]


@pytest.mark.parametrize(
    ("said", "key", "value"),
    [
        ({"name": "tills"}, "name", "tills"),
        ({"task": "regression"}, "task", "regression"),
        ({"split": "hash"}, "split", {"by": "hash", "validation_share": 0.15, "test_share": 0.15}),
        (
            {"group": "shelf"},
            "split",
            {"by": "hash", "validation_share": 0.15, "test_share": 0.15, "group": "shelf"},
        ),
    ],
)
def test_option_overrides_a_decision_for_the_table(tmp_path: Path, said: dict[str, Any], key: str, value: Any) -> None:
    table = make_shop_table(ROWS, at=MOMENTS, grade=RNG.integers(0, 3, ROWS))
    assert getattr(propose(table, "grade", tmp_path), key) != value
    assert getattr(propose(table, "grade", tmp_path, **said), key) == value


def test_the_positive_class_can_be_chosen(tmp_path: Path) -> None:
    for label, other in (("buyer", "guest"), ("guest", "buyer")):
        found = propose(make_shop_table(ROWS), "bought", tmp_path, positive=label)
        assert find_column(found, "bought")["categories"] == [other, label]


@pytest.mark.parametrize(
    ("target", "said", "message"),
    [
        ("", {}, "say which column to predict; known: bought, shelf, spent"),
        ("bougth", {}, "did you mean 'bought'?"),
        ("bought", {"id": "shlef"}, "did you mean 'shelf'?"),
        ("bought", {"id": "shelf"}, "does not name each row"),
        ("bought", {"time": "spent"}, "contains no parseable dates"),
        ("bought", {"ignore": ("bought",)}, "is given to --target too"),
        ("bought", {"task": "regression"}, "holds no numbers"),
        ("bought", {"task": "multiclass"}, "2 classes"),
        ("spent", {"task": "binary"}, "not classes"),
        ("bought", {"positive": "byer"}, "did you mean 'buyer'?"),
        ("shelf", {"positive": "left"}, "needs two classes"),
        ("bought", {"split": "time"}, "no column can be the time"),
        ("bought", {"split": "time", "time": "none"}, "needs a time column"),
    ],
)
def test_option_that_does_not_fit_the_table_is_reported(
    tmp_path: Path, target: str, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        propose(make_shop_table(ROWS), target, tmp_path, **said)


@pytest.mark.parametrize(
    ("table", "target", "message"),
    [
        (make_shop_table(ROWS, y=[None] * ROWS), "y", "no value in any row"),
        (make_shop_table(ROWS, y=["a"] * ROWS), "y", "one value only ('a')"),
        (make_shop_table(ROWS, y=MOMENTS), "y", "is a date"),
        (make_shop_table(ROWS, y=[f"t{at}" for at in range(ROWS)]), "y", "400 distinct texts"),
        (pl.DataFrame({"a": [1] * ROWS, "y": [0, 1] * (ROWS // 2)}), "y", "no column is left"),
    ],
)
def test_table_that_cannot_be_learned_from_is_rejected(
    tmp_path: Path, table: pl.DataFrame, target: str, message: str
) -> None:
    with pytest.raises(DataError) as raised:
        propose(table, target, tmp_path)
    assert message in str(raised.value)


@pytest.mark.chaos
@pytest.mark.full
def test_ten_thousand_columns_take_seconds(tmp_path: Path) -> None:
    table = pl.DataFrame(RNG.normal(size=(100, 10_000)), schema=[f"x{at}" for at in range(10_000)])
    found = propose(table.with_columns(y=pl.Series([0, 1] * 50)), "y", tmp_path)
    assert len(found.columns) == 10_001


def test_names_are_cut_into_words() -> None:
    assert (
        name_heuristics.split_words("CustomerID")
        == name_heuristics.split_words("customer-id")
        == name_heuristics.split_words("customer_id")
        == ["customer", "id"]
    )
    assert name_heuristics.split_words("HTTPStatus2") == ["http", "status", "2"]
    assert name_heuristics.split_words("Größe") == ["größe"]


def test_equal_rows_are_counted(tmp_path: Path) -> None:
    table = make_shop_table(ROWS)
    found = propose(pl.concat([table, table.tail(5)]), "bought", tmp_path)
    (issue,) = (issue for issue in found.issues if issue.kind == "duplicate rows")
    assert issue.evidence.startswith(f"5 of {ROWS + 5:,} rows")
