"""An edit of contract.yaml or params.yaml by hand takes effect in training, API, batch and monitoring alike."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import yaml

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.parsing.rules import REQUIRED
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.data.validate import find_violations
from flywheel_ml.flows import scoring
from flywheel_ml.monitoring import result
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.serving.app import create_app
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.project import PROJECT
from library.helpers.servers import InProcess

ROWS = 600
CONTRACT: dict[str, Any] = {
    "version": 1,
    "name": "shop",
    "columns": [
        {"name": "basket", "type": "string", "role": "id"},
        {"name": "weight", "type": "float", "range": [0, 10], "unit": "kg", "description": "weight of the basket"},
        {"name": "items", "type": "integer", "range": [0, 9]},
        {"name": "kind", "type": "string", "categories": ["new", "old", "used"]},
        {"name": "shelf", "type": "string", "categories": ["low", "high"]},
        {"name": "bought", "type": "string", "role": "target", "categories": ["no", "yes"]},
        {"name": "price", "type": "float", "role": "ignored"},
    ],
}
PARAMS: dict[str, Any] = {
    "seed": 1,
    "data": {"raw": "raw.parquet", "until": None},
    "split": {"by": "hash", "validation_share": 0.2, "test_share": 0.4},
    "train": {"estimator": "hist_gradient_boosting", "hist_gradient_boosting": {"max_iter": 5}},
    "evaluate": {"slices": ["kind"], "min_slice_rows": 20},
    "gates": {
        "min_score": 0.5,
        "min_skill_score": 0.0,
        "min_gain_over_linear": -0.1,
        "max_drop_from_champion": 0.01,
        "parity_tolerance": 1e-5,
    },
    "monitor": {"min_rows": 50, "min_labels": 50},
}
INSTANCE: dict[str, Any] = {"weight": 5.0, "items": 3, "kind": "old", "shelf": "low"}

Edit = Callable[[dict[str, Any], dict[str, Any]], None]


def shop() -> pl.DataFrame:
    rng = np.random.default_rng(3)
    weight, items = rng.random(ROWS) * 10, rng.integers(0, 10, ROWS)
    chance = 1 / (1 + np.exp(-(weight - 5) - (items - 4.5) / 3))
    return pl.DataFrame(
        {
            "basket": [f"basket-{at}" for at in range(ROWS)],
            "weight": weight,
            "items": items,
            "kind": rng.choice(["new", "old", "used"], ROWS),
            "shelf": rng.choice(["low", "high"], ROWS),
            "bought": np.where(rng.random(ROWS) < chance, "yes", "no"),
            "price": weight * 3 + rng.normal(size=ROWS),
        }
    )


class Turned(NamedTuple):
    """What the stages, the API, batch scoring and monitoring made of one state of both files."""

    contract: Contract
    params: Params
    bundle: Bundle
    schema: dict[str, Any]
    ask: Callable[..., tuple[int, dict[str, Any]]]
    batch: pl.DataFrame
    violations: dict[str, int]
    monitored: result.Result


Turn = Callable[..., Turned]


@pytest.fixture(scope="module")
def turn(tmp_path_factory: pytest.TempPathFactory) -> Turn:
    def call(edit: Edit = lambda contract, params: None) -> Turned:
        folder = tmp_path_factory.mktemp("edit")
        contract_text, params_text = copy.deepcopy(CONTRACT), copy.deepcopy(PARAMS)
        edit(contract_text, params_text)
        (folder / "contract.yaml").write_text(yaml.safe_dump(contract_text))
        (folder / "params.yaml").write_text(yaml.safe_dump(params_text))
        contract, params = Contract.load(folder / "contract.yaml"), Params.load(folder / "params.yaml")
        table = shop().with_columns(
            pl.col(column.name).cast(tables.DTYPES[column.type]) for column in contract.columns if column.is_numeric
        )
        path = make_bundle(folder / "bundle", table, contract, params)
        ServingFolder(folder / "serving", path).roll_out("1")
        settings = Settings(serving_folder=folder / "serving", prediction_log=str(folder / "log"))
        tables.write(table, folder / "in.parquet")
        scored = scoring.score(PROJECT, folder / "in.parquet", folder / "out.parquet", settings, params.score)
        opened = Bundle.open(path)
        found = from_file(folder / "out.parquet", opened, params.evaluate.slices)
        monitored = result.evaluate_window(found, opened, params, datetime(2024, 1, 1, tzinfo=UTC))

        def ask(*without: str, **changes: Any) -> tuple[int, dict[str, Any]]:
            row = {name: value for name, value in {**INSTANCE, **changes}.items() if name not in without}
            with InProcess(create_app(settings)) as here:
                answer = here.request("POST", "/predict", json={"instances": [row]})
                return answer.status_code, answer.json()

        with InProcess(create_app(settings)) as here:
            described = here.request("GET", "/openapi.json").json()
        batch = pl.read_parquet(folder / "out.parquet")
        return Turned(contract, params, opened, described, ask, batch, scored.violations, monitored)

    return cache(call)


@pytest.fixture(scope="module")
def before(turn: Turn) -> Turned:
    return turn()


def column(contract: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(column for column in contract["columns"] if column["name"] == name)
    return found


def properties(turned: Turned) -> dict[str, Any]:
    """What the API's description says of an instance's fields."""
    return _fields(turned.schema)


def _fields(node: Any) -> dict[str, Any]:
    if isinstance(node, dict):
        inside = node.get("properties")
        if isinstance(inside, dict) and "weight" in inside:
            return inside
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return next((found for child in children if (found := _fields(child))), {})


def columns_compared(turned: Turned) -> set[str]:
    return {comparison.column for comparison in turned.monitored.drift.comparisons}


def test_before_any_edit_all_four_agree(before: Turned) -> None:
    assert set(before.bundle.manifest.numeric) == {"weight", "items"}
    assert set(properties(before)) >= set(INSTANCE)
    status, answer = before.ask()
    assert status == 200
    assert answer["predictions"][0]["prediction"] in {"no", "yes"}
    assert before.violations == {}
    assert columns_compared(before) >= set(INSTANCE)


def test_a_feature_that_is_ignored_reaches_nothing(turn: Turn) -> None:
    now = turn(lambda contract, params: column(contract, "items").update(role="ignored"))
    assert now.bundle.manifest.numeric == ("weight",)
    assert "items" not in properties(now)
    assert now.ask("items")[0] == now.ask()[0] == 200
    assert now.batch["prediction"].null_count() == 0
    assert "items" not in columns_compared(now)


def test_ignored_column_made_a_feature_reaches_everything(turn: Turn, before: Turned) -> None:
    now = turn(lambda contract, params: column(contract, "price").update(role="feature"))
    assert set(now.bundle.manifest.numeric) == {"weight", "items", "price"}
    assert "price" in properties(now)
    assert now.ask()[0] == 422
    assert before.ask(price=9.0)[0] == now.ask(price=9.0)[0] == 200
    assert not now.batch["score"].equals(before.batch["score"])
    assert "price" in columns_compared(now)


def test_a_narrowed_range_refuses_what_lies_outside(turn: Turn, before: Turned) -> None:
    def edit(contract: dict[str, Any], params: dict[str, Any]) -> None:
        column(contract, "weight")["range"] = [0, 8]

    now, heavy = turn(edit), int((shop()["weight"] > 8).sum())
    assert [found.column for found in find_violations(shop(), now.contract)] == ["weight"], (
        "training stops at the table check"
    )
    assert before.ask(weight=9.0)[0] == 200
    assert now.ask(weight=9.0)[0] == 422
    assert now.violations == {"weight: must be between 0 and 8 kg": heavy}
    assert [(found.column, found.rows) for found in now.monitored.violations] == [("weight", heavy)]


def test_a_dropped_category_is_no_longer_known(turn: Turn, before: Turned) -> None:
    now = turn(lambda contract, params: column(contract, "kind").update(categories=["new", "old"]))
    used = int((shop()["kind"] == "used").sum())
    assert [found.column for found in find_violations(shop(), now.contract)] == ["kind"]
    assert "used" in json.dumps(properties(before)["kind"])
    assert "used" not in json.dumps(properties(now)["kind"])
    assert before.ask(kind="used")[0] == 200
    assert now.ask(kind="used")[0] == 422
    assert now.violations == {"kind: must be one of 'new' or 'old'": used}
    assert [(found.column, found.rows) for found in now.monitored.violations] == [("kind", used)]


def test_a_column_may_be_missing_once_it_is_nullable(turn: Turn, before: Turned) -> None:
    now = turn(lambda contract, params: column(contract, "items").update(nullable=True))
    gaps = shop().with_columns(pl.when(pl.col("basket") != "basket-7").then(pl.col("items")).alias("items"))
    assert [found.column for found in find_violations(gaps, before.contract)] == ["items"]
    assert not list(find_violations(gaps, now.contract))
    assert before.ask(items=None)[0] == 422
    assert now.ask(items=None)[0] == 200
    rule = f"items: {REQUIRED}"
    assert scoring.count_violations(gaps, before.contract)[rule] == gaps["items"].null_count()
    assert rule not in scoring.count_violations(gaps, now.contract)
    assert any("null" in json.dumps(field) for name, field in properties(now).items() if name == "items")


def test_unit_and_description_are_told_wherever_the_column_is(turn: Turn) -> None:
    def edit(contract: dict[str, Any], params: dict[str, Any]) -> None:
        column(contract, "weight").update(unit="lb", description="what it weighs", range=[0, 8])

    now = turn(edit)
    told = json.dumps(properties(now)["weight"])
    assert "lb" in told
    assert "what it weighs" in told
    assert "weight: must be between 0 and 8 lb" in now.violations
    assert now.monitored.violations[0].rule == "must be between 0 and 8 lb"
    assert "lb" in (now.bundle.path / "contract.yaml").read_text()


def test_an_integer_that_becomes_a_float_takes_fractions(turn: Turn, before: Turned) -> None:
    now = turn(lambda contract, params: column(contract, "items").update(type="float"))
    assert before.ask(items=3.5)[0] == 422
    assert now.ask(items=3.5)[0] == 200
    assert json.dumps(properties(now)["items"]).count("number")
    assert now.batch.schema["items"] == pl.Float64
    assert "items" in columns_compared(now)


def test_the_class_that_stands_last_is_the_positive_one(turn: Turn, before: Turned) -> None:
    now = turn(lambda contract, params: column(contract, "bought").update(categories=["yes", "no"]))
    assert now.bundle.manifest.classes == ("yes", "no")
    share = now.bundle.manifest.metrics["test"]["prevalence"]
    assert share == pytest.approx(1 - before.bundle.manifest.metrics["test"]["prevalence"], abs=0.1)
    assert list(now.ask()[1]["predictions"][0]["probabilities"]) == ["yes", "no"]
    both = np.corrcoef(now.batch["score"].to_numpy(), before.batch["score"].to_numpy())
    assert both[0, 1] < -0.8
    assert now.monitored.quality.measures["prevalence"].value == pytest.approx((shop()["bought"] == "no").mean())


def test_slices_and_their_least_rows_are_those_of_the_file(turn: Turn) -> None:
    now = turn(lambda contract, params: params["evaluate"].update(slices=["shelf"], min_slice_rows=10_000))
    assert {part.column for part in now.bundle.manifest.slices} == {"shelf"}
    assert {part.column for part in now.monitored.quality.slices} == {"shelf"}
    assert not any(part.enough for part in now.bundle.manifest.slices)
    assert not any(part.enough for part in now.monitored.quality.slices)
    assert "*too small*" in (now.bundle.path / "card.md").read_text()


def test_the_split_is_that_of_the_file(turn: Turn, before: Turned) -> None:
    now = turn(lambda contract, params: params["split"].update(test_share=0.2))
    assert now.bundle.manifest.rows["test"] < 0.7 * before.bundle.manifest.rows["test"]
    assert now.monitored.model.reference_rows == now.bundle.manifest.rows["test"]
    assert not now.batch["score"].equals(before.batch["score"])


def test_costs_move_the_threshold_and_with_it_every_answer(turn: Turn, before: Turned) -> None:
    now = turn(lambda contract, params: params["evaluate"].update(costs={"false_positive": 1, "false_negative": 30}))
    assert now.bundle.manifest.threshold is not None
    assert before.bundle.manifest.threshold is not None
    assert now.bundle.manifest.threshold < before.bundle.manifest.threshold
    assert (now.batch["prediction"] == "yes").sum() > (before.batch["prediction"] == "yes").sum()
    assert now.batch["score"].equals(before.batch["score"])
    (asked,) = now.ask()[1]["predictions"]
    assert asked["prediction"] == ("yes" if asked["probabilities"]["yes"] >= now.bundle.manifest.threshold else "no")
    costs = (found.monitored.quality.measures["mean_cost"].value for found in (now, before))
    assert next(costs) != next(costs)


def test_the_level_of_the_intervals_is_that_of_the_file(turn: Turn) -> None:
    def number(contract: dict[str, Any], params: dict[str, Any]) -> None:
        column(contract, "bought")["role"] = "ignored"
        column(contract, "price")["role"] = "target"

    def narrow(contract: dict[str, Any], params: dict[str, Any]) -> None:
        number(contract, params)
        params["evaluate"]["interval_level"] = 0.5

    wide, now = turn(number), turn(narrow)
    assert wide.bundle.manifest.half_width is not None
    assert now.bundle.manifest.half_width is not None
    assert now.bundle.manifest.half_width < wide.bundle.manifest.half_width
    low, high = now.ask()[1]["predictions"][0]["interval"]
    assert high - low == pytest.approx(2 * now.bundle.manifest.half_width, rel=1e-4)
    assert (now.batch["high"] - now.batch["low"]).mean() == pytest.approx(high - low, rel=1e-4)
    coverage = [found.monitored.quality.measures["coverage"].value for found in (now, wide)]
    assert coverage[0] < 0.75 < coverage[1]


@pytest.mark.parametrize(
    ("edit", "verdict"),
    [({}, "ok"), ({"min_rows": 10_000}, "insufficient data"), ({"min_labels": 10_000}, "ok")],
    ids=["as it is", "rows", "labels"],
)
def test_the_floors_of_monitoring_are_those_of_the_file(before: Turned, edit: dict[str, int], verdict: str) -> None:
    monitor = before.params.monitor.model_copy(update=edit)
    params = before.params.model_copy(update={"monitor": monitor})
    found = from_file(_scored(before), before.bundle, ())
    judged = result.evaluate_window(found, before.bundle, params, before.monitored.at)
    assert judged.verdict == verdict
    assert (judged.quality.verdict == "insufficient data") == ("min_labels" in edit)


def _scored(turned: Turned) -> Path:
    return turned.bundle.path.with_name("out.parquet")
