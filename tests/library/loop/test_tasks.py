"""Two classes, more of them, or a number: every task goes the whole way from a table to monitored answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import polars as pl
import pytest

from flywheel_ml.core import metrics, profile
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.catalog import LINEAR
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.metrics import HEADLINE
from flywheel_ml.core.params import Params, ScoreParams
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import data_card, tables
from flywheel_ml.flows import scoring
from flywheel_ml.model.evaluation import figures, gate
from flywheel_ml.model.evaluation.measure import measure_candidate
from flywheel_ml.monitoring import run
from flywheel_ml.monitoring.sources.logged_rows import from_log
from flywheel_ml.monitoring.sources.scored_file import from_file
from flywheel_ml.monitoring.window import Window
from flywheel_ml.prediction_log import Reader
from flywheel_ml.serving.app import create_app
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils import config_model
from library.helpers import protocol_clients, rows
from library.helpers.project import PROJECT
from library.helpers.protocol_clients import CLIENTS
from library.helpers.servers import InProcess, Server

TARGETS: dict[str, dict[str, Any]] = {
    "yes or no": {"type": "string", "categories": ["no", "yes"]},
    "numbered": {"type": "integer", "categories": [0, 1]},
    "three": {"type": "string", "categories": ["red", "green", "blue"]},
    "digits": {"type": "integer", "categories": [3, 1, 2, 7]},
    "price": {"type": "float", "range": [-50000, 1000000], "unit": "€"},
    "visits": {"type": "integer"},
}

IN_FULL = ("three", "visits")
"""Others of their tasks run in every suite."""
STOCKED = ("yes or no", "digits", "price")
"""The targets that are served to stock clients too: two classes, more of them, a number."""


class Made(NamedTuple):
    """A table, and the bundle that the project's own stages make of it."""

    name: str
    contract: Contract
    table: pl.DataFrame
    path: Path
    bundle: Bundle


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.full) if name in IN_FULL else name for name in TARGETS],
)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, contract: Contract, params: Params
) -> Made:
    target = config_model.parse(
        {"name": contract.target.name, "role": "target", **TARGETS[request.param]}, Column, "target"
    )
    columns = tuple(target if column.role == "target" else column for column in contract.columns)
    changed = contract.model_copy(update={"columns": columns})
    table = rows.make_table(changed, 2500)
    path = make_bundle(tmp_path_factory.mktemp("task") / "bundle", table, changed, adapted(params, changed))
    return Made(request.param, changed, table, path, Bundle.open(path))


def slices(contract: Contract) -> tuple[str, ...]:
    return tuple(column.name for column in contract.inputs if column.categories)[:2]


def adapted(params: Params, contract: Contract) -> Params:
    """The project's parameters, without what they say about its own table."""
    split = config_model.parse({"by": "hash"}, type(params.split), "split")
    evaluate = params.evaluate.model_copy(update={"slices": slices(contract)})
    wanted = {
        "min_score": 0.3,
        "min_gain_over_linear": -0.2,
        "min_skill_score": 0.0,
        "min_slice_score": 0.0,
        "max_slice_drop": None,
    }
    gates = params.gates.model_copy(update=wanted)
    # Some of these targets follow a line, and a worse model than a linear one is refused.
    candidates = (LINEAR[contract.task], "hist_gradient_boosting")
    train = params.train.model_copy(update={"estimator": "auto", "candidates": candidates})
    return params.model_copy(update={"split": split, "evaluate": evaluate, "gates": gates, "train": train})


def candidate(made: Made, params: Params) -> gate.Candidate:
    found = tables.to_columns(made.table.head(20), made.contract.inputs)
    return gate.Candidate(made.bundle.manifest, **measure_candidate(made.bundle, found, params.evaluate))


def test_the_model_beats_the_average_and_passes_every_gate(made: Made, params: Params) -> None:
    checks = gate.check_gates(candidate(made, params), adapted(params, made.contract).gates)
    assert [check for check in checks if not check.passed] == []
    assert made.bundle.manifest.metrics["test"][HEADLINE[made.contract.task]] > 0.3


def test_a_champion_that_is_better_keeps_its_place(made: Made, params: Params) -> None:
    beaten = candidate(made, params)._replace(champion_score=0.9999)
    failed = {
        check.gate for check in gate.check_gates(beaten, adapted(params, made.contract).gates) if not check.passed
    }
    assert failed == {"keeps up with the champion"}


def test_answers_are_in_the_targets_own_type(made: Made) -> None:
    answers = made.bundle.predict(tables.to_columns(made.table, made.contract.inputs))
    classes = made.contract.classes
    values = answers.values.tolist()
    if classes:
        assert set(values) == set(classes)
        assert {type(value) for value in values} == {type(label) for label in classes}
        assert answers.output.shape == (2500, len(classes))
        assert np.abs(answers.output.sum(axis=1) - 1).max() < 1e-5
    else:
        assert {type(value) for value in values} == {float}
        low, high = answers.output[:, 1], answers.output[:, 2]
        assert ((low < answers.values) & (answers.values < high)).all()


def test_an_interval_holds_the_truth_as_often_as_it_says(made: Made, params: Params) -> None:
    if made.contract.classes:
        pytest.skip("classes have no interval")
    coverage = made.bundle.manifest.metrics["test"]["coverage"]
    assert coverage == pytest.approx(params.evaluate.interval_level, abs=0.06)


def test_each_of_many_classes_is_judged_by_itself(made: Made) -> None:
    found = {part.value for part in made.bundle.manifest.slices if part.column == made.contract.target.name}
    assert found == ({str(label) for label in made.contract.classes} if made.contract.task == "multiclass" else set())


class Served(NamedTuple):
    """Predictions of the API for 300 rows whose labels it then received, and where both are stored."""

    told: list[dict[str, Any]]
    log: str
    documents: dict[str, Any]


@pytest.fixture(scope="module")
def served(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    ServingFolder(home / "serving", made.path).roll_out("1")
    settings = Settings(serving_folder=home / "serving", prediction_log=str(home / "log"))
    some = made.table.head(300)
    with InProcess(create_app(settings)) as here:
        answer = here.request("POST", "/predict", json={"instances": json_rows(some, made.contract)})
        assert answer.status_code == 200, answer.text
        told = answer.json()["predictions"]
        pairs = zip(told, some[made.contract.target.name].to_list(), strict=True)
        labels = [{"id": one["id"], "label": label} for one, label in pairs]
        taken = here.request("POST", "/feedback", json={"labels": labels})
        assert taken.json() == {"accepted": 300}, taken.text
        wrong = here.request("POST", "/feedback", json={"labels": [{"id": told[0]["id"], "label": "nonsense"}]})
        assert wrong.status_code == 422
        yield Served(told, str(home / "log"), here.request("GET", "/openapi.json").json())


def test_the_api_tells_what_the_bundle_answers(made: Made, served: Served) -> None:
    answers = made.bundle.predict(tables.to_columns(made.table.head(300), made.contract.inputs))
    assert [one["prediction"] for one in served.told] == answers.values.tolist()
    if made.contract.classes:
        names = [str(label) for label in made.contract.classes]
        assert [list(one["probabilities"]) for one in served.told] == [names] * 300
        assert [list(one["probabilities"].values()) for one in served.told] == answers.output.tolist()
    else:
        assert [one["interval"] for one in served.told] == answers.output[:, 1:].tolist()


def test_every_protocol_tells_the_same(made: Made, stocked: httpx.Client) -> None:
    sent = json_rows(made.table.head(20), made.contract)
    wanted = protocol_clients.send_native(stocked, sent)
    for speak in CLIENTS:
        told = speak(stocked, sent)
        assert told.predictions == wanted.predictions, speak.__name__
        assert {type(one) for one in told.predictions} == {type(one) for one in wanted.predictions}
        assert told.details in (None, wanted.details)


def test_mlflows_own_client_is_understood(made: Made, stocked: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    monkeypatch.setenv("NO_PROXY", "*")
    speaker = ScoringServerClient(stocked.base_url.host, stocked.base_url.port)
    speaker.ping()
    some = made.table.head(50).select(column.name for column in made.contract.inputs)
    wanted = protocol_clients.send_native(stocked, json_rows(some, made.contract)).predictions
    # pandas' frame: NaN for what is missing, floats for integers with gaps, its own timestamps.
    frame = some.to_pandas()
    assert speaker.invoke(frame)["predictions"] == wanted
    assert speaker.invoke(json_rows(some, made.contract)).get_predictions()[0].tolist() == wanted
    answer = protocol_clients.send_csv(stocked, frame.to_csv(index=False))
    assert answer.json()["predictions"] == wanted


def test_every_task_is_explained_over_http(made: Made, stocked: httpx.Client) -> None:
    (row,) = json_rows(made.table.head(1), made.contract)
    (told,) = stocked.post("/explain", json={"instances": [row]}).json()["explanations"]
    (predicted,) = stocked.post("/predict", json={"instances": [row]}).json()["predictions"]
    assert told["prediction"] == predicted["prediction"]
    if made.contract.classes:
        explained = made.contract.classes[-1] if made.contract.task == "binary" else predicted["prediction"]
        assert told["explained_class"] == explained
        assert told["score"] == predicted["probabilities"][str(explained)]
    else:
        assert (told["explained_class"], told["score"]) == (None, predicted["prediction"])
    total = told["base"] + sum(one["contribution"] for one in told["contributions"])
    assert total == pytest.approx(told["score"], abs=1e-12 * max(1.0, abs(told["score"])))


def test_the_description_asks_for_labels_as_the_contract_has_them(made: Made, served: Served) -> None:
    text = json.dumps(served.documents["components"]) + json.dumps(served.documents["paths"]["/feedback"])
    assert all(json.dumps(label) in text for label in made.contract.classes)


@pytest.fixture(scope="module")
def stocked(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a real server."""
    if made.name not in STOCKED:
        pytest.skip("as another one of its task")
    home = tmp_path_factory.mktemp("stocked")
    ServingFolder(home / "serving", made.path).roll_out("1")
    with Server(home) as running, running.client() as client:
        yield client


@pytest.fixture(scope="module")
def scored(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    ServingFolder(folder / "serving", made.path).roll_out("1")
    settings = Settings(serving_folder=folder / "serving", prediction_log=str(folder / "log"))
    tables.write(made.table, folder / "in.parquet")
    scoring.score(PROJECT, folder / "in.parquet", folder / "out.parquet", settings, ScoreParams(chunk_rows=700))
    return folder / "out.parquet"


def test_batch_scoring_writes_the_same_answers(made: Made, scored: Path, served: Served) -> None:
    found = pl.read_parquet(scored)
    assert found.select(made.table.columns).equals(made.table)
    assert found["prediction"].head(300).to_list() == [one["prediction"] for one in served.told]
    if made.contract.task == "multiclass":
        wanted = [list(one["probabilities"].values()) for one in served.told]
        assert [list(one) for one in found["probabilities"].head(300)] == wanted
    if made.contract.task == "regression":
        assert [list(ends) for ends in found.select("low", "high").head(300).rows()] == [
            one["interval"] for one in served.told
        ]


def windows(made: Made, scored: Path, served: Served) -> list[Window]:
    tables.write(pl.read_parquet(scored).head(300), scored.with_name("some.parquet"))
    found = slices(made.contract)
    return [
        from_log(Reader(served.log), made.bundle, found),
        from_file(scored.with_name("some.parquet"), made.bundle, found),
    ]


def test_the_log_and_the_file_are_measured_alike(made: Made, scored: Path, served: Served) -> None:
    logged, filed = windows(made, scored, served)
    # The log is in the order of its ids, which are drawn.
    one, other = (sorted(zip(map(tuple, found.output.tolist()), found.truth, strict=True)) for found in (logged, filed))
    assert one == other
    assert logged.profile == filed.profile


def test_predictions_are_counted_as_in_the_reference(made: Made, scored: Path) -> None:
    # A prediction that repeats has a bin of its own, which a rounded value would leave.
    columns = tables.to_columns(made.table, made.contract.inputs)
    scores = made.bundle.predict(columns).scores.astype(np.float64)
    expected = profile.count(made.bundle.profile, columns, scores).columns[profile.PREDICTION]
    assert from_file(scored, made.bundle).profile.columns[profile.PREDICTION] == expected


def test_similar_rows_are_ok_and_shuffled_labels_degrade(
    made: Made, scored: Path, params: Params, tmp_path: Path
) -> None:
    window = from_file(scored, made.bundle, slices(made.contract))
    well = run.monitor(window, made.bundle, adapted(params, made.contract), tmp_path)
    assert well.result.verdict == "ok", well.result.sentences
    classes = [part for part in well.result.quality.slices if part.column == made.contract.target.name]
    assert {part.value for part in classes} == (
        {str(label) for label in made.contract.classes} if made.contract.task == "multiclass" else set()
    )
    assert all(part.reference is not None for part in classes)
    dealt = window.truth[np.random.default_rng(0).permutation(len(window.truth))]
    worse = run.monitor(
        Window(**{**vars(window), "truth": dealt}), made.bundle, adapted(params, made.contract), tmp_path
    )
    assert worse.result.verdict == "degraded"
    page = worse.html.read_text()
    assert worse.result.headline.startswith("The model has become worse: ")
    assert worse.result.headline in page
    assert ("share of right answers" in page) == (made.contract.task == "multiclass")
    assert "None" not in page
    assert "nan" not in page.lower().replace("finance", "")


def test_cards_and_pictures_read_naturally(made: Made, tmp_path: Path, params: Params) -> None:
    text = (made.path / "card.md").read_text()
    for label in made.contract.classes:
        assert str(label) in text
    assert "None" not in text
    told = data_card.render_card(made.table, made.contract, {"rows_after_until": 0, "rows_without_label": 0})
    assert "None" not in told
    part = made.table.tail(400)
    answers = made.bundle.predict(tables.to_columns(part, made.contract.inputs)).output
    curves = metrics.compute_curves(made.contract.task, tables.encode_target(part, made.contract), answers)
    figures.draw_evaluation(tmp_path / "a.png", "title", {**curves, "importance": [{"column": "x", "loss": 0.1}]})  # type: ignore[dict-item]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_stock_mlflow_answers_alike(made: Made) -> None:
    from flywheel_ml.model.registration.pyfunc import BundleModel

    model = BundleModel()
    model._bundle = made.bundle
    frame = made.table.head(50).select(column.name for column in made.contract.inputs).to_pandas()
    found = model.predict(None, frame)
    answers = made.bundle.predict(tables.to_columns(made.table.head(50), made.contract.inputs))
    assert found["prediction"].tolist() == answers.values.tolist()
