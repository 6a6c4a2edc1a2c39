"""Explanations match the definition of Shapley values for every estimator."""

import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import BACKGROUND, Bundle
from flywheel_ml.core.contract import Columns, Contract, columns_from_rows
from flywheel_ml.core.features import Inputs
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.explanation.explanation import Explanation, explain
from flywheel_ml.model.packaging import package
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, IntegrityError, NotExplainable
from library.core.test_bundle import facts
from library.helpers import rows
from library.helpers.bundles import same_bits
from library.helpers.rows import find_column
from library.loop.test_tasks import TARGETS, adapted

Row = dict[str, Any]

COLUMNS: tuple[Row, ...] = (
    {"name": "name", "type": "string", "role": "id"},
    {"name": "when", "type": "datetime", "role": "time"},
    {"name": "size", "type": "float", "range": [0, 10]},
    {"name": "age", "type": "integer", "nullable": True, "range": [0, 100]},
    {"name": "kind", "type": "string", "categories": ["a", "b", "c", "d"], "nullable": True},
    {"name": "new", "type": "boolean", "personal": True},
    {"name": "idle", "type": "float"},
    {"name": "what", "role": "target"},
)
MODELS: dict[str, tuple[str, str]] = {
    "boosting": ("yes or no", "hist_gradient_boosting"),
    "boosting of many classes": ("digits", "hist_gradient_boosting"),
    "logistic": ("three", "logistic_regression"),
    "ridge": ("price", "ridge"),
    "forest": ("numbered", "random_forest"),
    "network": ("visits", "mlp"),
}
FEW = 3000
"""Too few scored rows for every coalition."""


def growth(size: np.ndarray, age: np.ndarray) -> np.ndarray:
    """A feature of two columns."""
    found: np.ndarray = size / (1 + age)
    return found


class Made(NamedTuple):
    """A bundle, its rows as the API would take them, and those that it carries."""

    bundle: Bundle
    rows: list[Row]
    background: list[Row]
    train: pl.DataFrame


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, params: Params) -> Made:
    target, estimator = MODELS[request.param]
    columns = [{**column, **(TARGETS[target] if column["name"] == "what" else {})} for column in COLUMNS]
    contract = config_model.parse({"name": "things", "columns": columns}, Contract, "contract")
    # To the model, a column that never changed in training says nothing.
    table = rows.make_table(contract, 1200).with_columns(pl.lit(1.0).alias("idle"))
    chosen = adapted(params, contract)
    small = {
        "estimator": estimator,
        "random_forest": chosen.train.random_forest.model_copy(update={"n_estimators": 10}),
        "mlp": chosen.train.mlp.model_copy(update={"max_steps": 300}),
        "sklearn_default": False,
    }
    chosen = chosen.model_copy(update={"train": chosen.train.model_copy(update=small)})
    path = make_bundle(tmp_path_factory.mktemp("explained") / "bundle", table, contract, chosen, (growth,))
    opened = Bundle.open(path, features=(growth,))
    return Made(opened, json_rows(table, contract), json.loads((path / BACKGROUND).read_text()), table)


def score(made: Made, asked: list[Row], like: Row) -> np.ndarray:
    """The logged score of rows: of many classes, that of the class that `like` is predicted."""
    predicted = made.bundle.predict(columns_from_rows(made.bundle.contract.inputs, asked))
    if made.bundle.manifest.task != "multiclass":
        return predicted.scores.astype(np.float64)
    own = made.bundle.predict(columns_from_rows(made.bundle.contract.inputs, [like])).output.argmax()
    return predicted.output[:, own].astype(np.float64)


def by_definition(made: Made, row: Row) -> dict[str, float]:
    """Shapley's own formula, over rows put together as a caller would."""
    names = [column.name for column in made.bundle.contract.inputs]
    coalitions = [set(some) for size in range(len(names) + 1) for some in itertools.combinations(names, size)]
    asked = [
        {name: (row if name in some else other)[name] for name in names}
        for some in coalitions
        for other in made.background
    ]
    means = score(made, asked, row).reshape(len(coalitions), -1).mean(axis=1)
    worth = dict(zip(map(frozenset, coalitions), means, strict=True))
    return {
        name: sum(
            (worth[some | {name}] - found) / (len(names) * math.comb(len(names) - 1, len(some)))
            for some, found in worth.items()
            if name not in some
        )
        for name in names
    }


def by_column(found: Explanation) -> dict[str, float]:
    return {one.column: one.contribution for one in found.contributions}


def test_contributions_match_the_definition_and_the_score(made: Made) -> None:
    for row in made.rows[::300]:
        found = explain(made.bundle, row)
        told = made.bundle.predict(columns_from_rows(made.bundle.contract.inputs, [row]))
        assert found.prediction == told.values.tolist()[0]
        assert type(found.prediction) is type(told.values.tolist()[0])
        assert found.score == told.scores.tolist()[0]
        assert found.base == pytest.approx(score(made, made.background, row).mean(), rel=1e-9)
        parts = by_column(found)
        scale = max(1.0, abs(found.score))
        assert found.base + sum(parts.values()) == pytest.approx(found.score, abs=1e-12 * scale)
        assert parts == pytest.approx(by_definition(made, row), abs=1e-9 * scale)
        assert found.method.name == "shapley-exact"
        assert found.method.scored_rows == 50 * 2 ** len(parts)


def test_sampled_contributions_match_their_errors_and_sum(made: Made) -> None:
    row = made.rows[100]
    exact, found = by_column(explain(made.bundle, row)), explain(made.bundle, row, FEW)
    assert (found.method.name, found.method.background_rows) == ("shapley-permutations", 50)
    assert found.method.scored_rows <= FEW
    scale = max(1.0, abs(found.score))
    for part in found.contributions:
        assert abs(part.contribution - exact[part.column]) <= 4 * part.standard_error + 1e-6 * scale, part.column
    assert found.base + sum(by_column(found).values()) == pytest.approx(found.score, abs=1e-12 * scale)


@pytest.mark.parametrize("most", [20_000, FEW])
def test_unused_column_contributes_zero(made: Made, most: int) -> None:
    if made.bundle.manifest.estimator == "mlp":
        pytest.skip("a network uses whatever it is given")
    found = explain(made.bundle, {**made.rows[100], "idle": 7.0}, most)
    (idle,) = (one for one in found.contributions if one.column == "idle")
    assert (idle.value, idle.contribution, idle.standard_error) == (7.0, 0.0, 0.0)


def test_explained_class_is_the_positive_or_predicted_one(made: Made) -> None:
    task, classes = made.bundle.manifest.task, made.bundle.manifest.classes
    for row in made.rows[::200]:
        found = explain(made.bundle, row, FEW)
        wanted = {"binary": classes[-1:] and classes[-1], "multiclass": found.prediction, "regression": None}[task]
        assert found.explained_class == wanted


def test_contributions_are_sorted_and_have_the_sent_values(made: Made) -> None:
    row = made.rows[50]
    found = explain(made.bundle, {**row, "name": "whoever"}, FEW)
    sizes = [abs(one.contribution) for one in found.contributions]
    assert sizes == sorted(sizes, reverse=True)
    assert {one.column: one.value for one in found.contributions} == row


def test_missing_values_are_explained_like_others(made: Made) -> None:
    row = {**made.rows[7], "age": None, "kind": None}
    absent = {name: value for name, value in row.items() if value is not None}
    found = explain(made.bundle, absent)
    assert by_column(found) == pytest.approx(by_definition(made, row), abs=1e-9 * max(1.0, abs(found.score)))
    assert {one.column for one in found.contributions if one.value is None} == {"age", "kind"}
    assert found == explain(made.bundle, row)


def test_the_same_row_gets_the_same_bytes(made: Made) -> None:
    again = Bundle.open(made.bundle.path, features=(growth,))
    for most in (20_000, FEW):
        one, other = (explain(opened, made.rows[3], most).model_dump_json() for opened in (made.bundle, again))
        assert one == other


def test_background_is_training_rows_without_ids(made: Made) -> None:
    contract = made.bundle.contract
    assert len(made.background) == 50
    assert {name for row in made.background for name in row} == {column.name for column in contract.inputs}
    known = {json.dumps(row, sort_keys=True) for row in made.rows}
    assert {json.dumps(row, sort_keys=True) for row in made.background} <= known
    assert "row-" not in (made.bundle.path / BACKGROUND).read_text()
    assert made.bundle.manifest.rows["train"] < made.train.height


def test_background_has_nearly_the_mean_score_of_all_rows(made: Made) -> None:
    def means(asked: list[Row]) -> np.ndarray:
        answers = made.bundle.run(made.bundle.encode(columns_from_rows(made.bundle.contract.inputs, asked)))
        found: np.ndarray = answers.mean(axis=0)
        return found

    spread = made.bundle.run(made.bundle.encode(columns_from_rows(made.bundle.contract.inputs, made.rows))).std(axis=0)
    # By chance it would be 0.14 standard deviations; the rows that were not trained on are 0.02 of it.
    assert (np.abs(means(made.background) - means(made.rows)) < 0.08 * spread).all()


def test_background_rows_survive_the_file_bit_for_bit(made: Made) -> None:
    contract = made.bundle.contract
    gone = made.train.with_columns(pl.when(pl.col("size") < 5).then(None).otherwise(pl.col("size")).alias("size"))
    kept = package.choose_background(made.bundle, gone, 400, seed=3)
    places = {repr(row): at for at, row in enumerate(json_rows(gone, contract))}
    drawn = [places[repr(row)] for row in kept]
    assert len(set(drawn)) == 400
    assert (
        kept
        == package.choose_background(made.bundle, gone, 400, seed=3)
        != package.choose_background(made.bundle, gone, 400, seed=4)
    )
    assert len(package.choose_background(made.bundle, gone.head(5), 400, seed=3)) == 5
    back = columns_from_rows(contract.inputs, json.loads(json.dumps(kept)))
    there = tables.to_columns(gone, contract.inputs)
    for name, values in back.items():
        np.testing.assert_array_equal(values, there[name][drawn], strict=True)


@pytest.fixture
def row(table: pl.DataFrame, contract: Contract) -> Row:
    return json_rows(table.head(1), contract)[0]


def test_old_bundle_answers_but_is_not_explainable(
    bundle_path: Path, bundle_copy: Path, columns: Columns, row: Row
) -> None:
    (bundle_copy / BACKGROUND).unlink()
    bundle.write_manifest(bundle_copy, {**facts(bundle_copy), "format": 1})
    old = Bundle.open(bundle_copy)
    assert same_bits(old.predict(columns).output, Bundle.open(bundle_path).predict(columns).output)
    with pytest.raises(NotExplainable, match=r"no background rows .* params.yaml above 0 and train again"):
        explain(old, row)


def test_bundle_without_background_is_not_explainable(bundle_copy: Path, table: pl.DataFrame, row: Row) -> None:
    assert package.choose_background(Bundle.open(bundle_copy), table, 0, seed=1) == []
    (bundle_copy / BACKGROUND).write_text("[]\n")
    bundle.write_manifest(bundle_copy, facts(bundle_copy))
    with pytest.raises(NotExplainable, match="train again"):
        explain(Bundle.open(bundle_copy), row)


def test_new_bundle_without_background_entry_is_rejected(bundle_copy: Path) -> None:
    content = json.loads((bundle_copy / bundle.MANIFEST).read_text())
    del content["files"][BACKGROUND]
    (bundle_copy / bundle.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match=r"lists other files than .*background.json"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("content", ["", "{", "3", '["x"]', '{"a": 1}'])
def test_malformed_background_is_rejected(bundle_copy: Path, content: str) -> None:
    (bundle_copy / BACKGROUND).write_text(content)
    bundle.write_manifest(bundle_copy, facts(bundle_copy))
    with pytest.raises(IntegrityError, match=r"background.json does not contain rows of its contract.yaml"):
        Bundle.open(bundle_copy)


def test_background_of_wrong_types_is_rejected(bundle_copy: Path, contract: Contract) -> None:
    column = find_column(contract, lambda column: column.is_numeric, "number")
    (bundle_copy / BACKGROUND).write_text(json.dumps([{column.name: "large"}]))
    bundle.write_manifest(bundle_copy, facts(bundle_copy))
    with pytest.raises(IntegrityError, match=r"background.json does not contain rows of its contract.yaml"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("fault", ["nan", "raised"])
def test_model_that_fails_on_mixed_rows_is_not_explained(bundle_path: Path, row: Row, fault: str) -> None:
    class Broken(Bundle):
        def run(self, inputs: Inputs) -> np.ndarray:
            found = super().run(inputs)
            if len(inputs.num) > 1:
                if fault == "raised":
                    raise RuntimeError("no")
                found[-1] = np.nan
            return found

    broken = Broken.open(bundle_path)
    with pytest.raises(NotExplainable, match="on this row or on a background mix of it") as caught:
        explain(broken, row)
    assert str(bundle_path) not in str(caught.value)


def test_too_many_background_rows_are_rejected_by_name(params: Params) -> None:
    content = {**params.model_dump(mode="json"), "explain": {"background_rows": 201}}
    with pytest.raises(ConfigError, match=r"explain.background_rows: .*less than or equal to 200"):
        config_model.parse(content, Params, "params.yaml")
