"""Acceptance: rows of this project's contract, from training to served, logged, monitored and explained predictions."""

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.metrics import HEADLINE
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.data.validate import find_violations
from flywheel_ml.flows import monitoring, scoring
from flywheel_ml.flows.explaining import explain_logged
from flywheel_ml.flows.quality import skew
from flywheel_ml.prediction_log import Reader
from flywheel_ml.testing import rows
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import Server

from << cookiecutter.package_name >>.project import PROJECT

ARROW = "application/vnd.apache.arrow.stream"
N_ROWS = 400
Instances = Sequence[Mapping[str, Any]]


class Served(NamedTuple):
    """Rows, their predictions by the API, and where batch scoring wrote its own."""

    table: pl.DataFrame
    predictions: list[dict[str, Any]]
    scored: Path


@pytest.fixture(scope="module")
def settings(home: Path) -> Iterator[Settings]:
    """Settings of the server's folder, which is the current folder."""
    with chdir(home):
        yield Settings(_env_file=None, serving_folder=home / "serving", prediction_log=str(home / "log"))


@pytest.fixture(scope="module")
def served(client: httpx.Client, contract: Contract, params: Params, settings: Settings) -> Served:
    """New rows, predicted over HTTP and by batch scoring; their labels are sent to the server."""
    table = rows.make_table(contract, N_ROWS, seed=1)
    answer = checked(client.post("/predict", json={"instances": json_rows(table, contract)})).json()
    assert answer["degraded"] is False
    predictions = answer["predictions"]
    labels = zip(predictions, table[contract.target.name].to_list(), strict=True)
    feedback = {"labels": [{"id": one["id"], "label": label} for one, label in labels]}
    assert checked(client.post("/feedback", json=feedback)).json() == {"accepted": N_ROWS}
    tables.write(table, Path("in.parquet"))
    scoring.score(PROJECT, Path("in.parquet"), Path("out.parquet"), settings, params.score)
    return Served(table, predictions, Path("out.parquet").resolve())


def checked(response: httpx.Response) -> httpx.Response:
    """The response, if it is a success."""
    assert response.status_code == httpx.codes.OK, response.text
    return response


def arrow(client: httpx.Client, instances: Instances) -> list[Any]:
    """Send an Arrow stream and read one."""
    sent, sink = pa.Table.from_pylist([dict(row) for row in instances]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, sent.schema) as writer:
        writer.write_table(sent)
    headers = {"Content-Type": ARROW, "Accept": ARROW}
    answer = checked(client.post("/predict", content=bytes(sink.getvalue()), headers=headers))
    found: list[Any] = pa.ipc.open_stream(answer.content).read_all()["prediction"].to_pylist()
    return found


def records(client: httpx.Client, instances: Instances) -> list[Any]:
    """MLflow's `dataframe_records`."""
    return invoked(client, json={"dataframe_records": instances})


def split(client: httpx.Client, instances: Instances) -> list[Any]:
    """MLflow's `dataframe_split`."""
    data = [list(row.values()) for row in instances]
    return invoked(client, json={"dataframe_split": {"columns": list(instances[0]), "data": data}})


def inputs(client: httpx.Client, instances: Instances) -> list[Any]:
    """TensorFlow Serving's `inputs`, by column."""
    return invoked(client, json={"inputs": {name: [row[name] for row in instances] for name in instances[0]}})


def comma_separated(client: httpx.Client, instances: Instances) -> list[Any]:
    """SageMaker's CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(instances[0]))
    writer.writeheader()
    writer.writerows(instances)
    return invoked(client, content=text.getvalue(), headers={"Content-Type": "text/csv"})


def invoked(client: httpx.Client, **request: Any) -> list[Any]:
    """Predictions of `/invocations`."""
    found: list[Any] = checked(client.post("/invocations", **request)).json()["predictions"]
    return found


def tensors(client: httpx.Client, instances: Instances) -> list[Any]:
    """The Open Inference Protocol, one tensor for each column."""
    path = f"/v2/models/{client.get('/model').json()['name']}"
    described = checked(client.get(path)).json()["inputs"]
    columns = {one["name"]: [row.get(one["name"]) for row in instances] for one in described}
    sent = [
        {"name": one["name"], "datatype": one["datatype"], "shape": [len(instances)], "data": columns[one["name"]]}
        for one in described
        if any(value is not None for value in columns[one["name"]])
    ]
    outputs = checked(client.post(f"{path}/infer", json={"inputs": sent})).json()["outputs"]
    found: list[Any] = next(one["data"] for one in outputs if one["name"] == "prediction")
    return found


def test_synthetic_rows_satisfy_the_contract(table: pl.DataFrame, contract: Contract) -> None:
    assert find_violations(table, contract) == []


@pytest.mark.attack("whole loop")
def test_model_learns_a_signal(bundle: Bundle) -> None:
    assert bundle.manifest.metrics["test"][HEADLINE[bundle.contract.task]] > 0.3


@pytest.mark.attack("whole loop")
def test_api_answers_with_what_the_bundle_predicts(served: Served, bundle: Bundle, contract: Contract) -> None:
    expected = bundle.predict(tables.to_columns(served.table, contract.inputs))
    assert [one["prediction"] for one in served.predictions] == expected.values.tolist()


@pytest.mark.parametrize("protocol", [arrow, records, split, inputs, comma_separated, tensors])
def test_every_protocol_gives_the_same_predictions(
    served: Served, client: httpx.Client, contract: Contract, protocol: Callable[[httpx.Client, Instances], list[Any]]
) -> None:
    sent = json_rows(served.table.head(40), contract)
    assert protocol(client, sent) == [one["prediction"] for one in served.predictions[:40]]


def test_row_with_an_invalid_value_is_rejected_by_name(
    served: Served, client: httpx.Client, contract: Contract
) -> None:
    row = {**json_rows(served.table.head(1), contract)[0], "no such column": 1}
    answer = client.post("/predict", json={"instances": [row]})
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    assert "no such column" in answer.text


@pytest.mark.attack("whole loop")
def test_batch_scoring_gives_the_same_predictions(served: Served) -> None:
    scored = pl.read_parquet(served.scored)
    assert scored.select(served.table.columns).equals(served.table)
    assert scored["prediction"].to_list() == [one["prediction"] for one in served.predictions]


@pytest.mark.attack("whole loop")
def test_log_holds_every_prediction_and_label(served: Served, server: Server) -> None:
    logged = {one.prediction.id for one in Reader(server.log).predictions()}
    assert all(one["id"] in logged for one in served.predictions)
    labels = Reader(server.log).labels([one["id"] for one in served.predictions])
    assert len(labels) == N_ROWS


def test_monitoring_accepts_rows_like_those_of_training(served: Served, params: Params, settings: Settings) -> None:
    found = monitoring.monitor_window(PROJECT, settings, params, served.scored, None, None)
    assert found.result.volume.rows == N_ROWS
    assert not found.result.drift.drifted
    assert found.html.is_file()


def test_monitoring_reports_drift_of_the_inputs(
    served: Served, contract: Contract, params: Params, settings: Settings
) -> None:
    """Every value of a numeric or categorical input is replaced by the value of one row."""
    first = next(column.name for column in contract.inputs if column.is_numeric or column.categories)
    constant = served.table.drop_nulls(first)[first][0]
    tables.write(served.table.with_columns(pl.lit(constant).alias(first)), Path("drifted.parquet"))
    scoring.score(PROJECT, Path("drifted.parquet"), Path("scored.parquet"), settings, params.score)
    found = monitoring.monitor_window(PROJECT, settings, params, Path("scored.parquet"), None, None)
    assert first in found.result.drift.drifted
    assert found.alerts


@pytest.mark.attack("whole loop")
def test_monitoring_reads_predictions_and_labels_from_the_log(
    served: Served, params: Params, settings: Settings
) -> None:
    found = monitoring.monitor_window(PROJECT, settings, params, None, None, None)
    assert found.result.volume.rows >= N_ROWS
    assert found.result.quality.labelled == N_ROWS


@pytest.mark.attack("cents instead of dollars")
def test_monitoring_reports_another_unit(
    served: Served, contract: Contract, params: Params, settings: Settings
) -> None:
    """A caller sends a hundred times the value of a number, or where there is none, another spelling of a category."""
    numbers = [column for column in contract.inputs if column.type in {"float", "integer"}]
    column = next(one for one in [*numbers, *contract.inputs] if one.is_numeric or one.type == "string")
    changed = pl.col(column.name) * 100 if column in numbers else pl.lit("another spelling")
    dtype = served.table.schema[column.name]
    tables.write(served.table.with_columns(changed.cast(dtype).alias(column.name)), Path("cents.parquet"))
    scoring.score(PROJECT, Path("cents.parquet"), Path("scored_cents.parquet"), settings, params.score)
    found = monitoring.monitor_window(PROJECT, settings, params, Path("scored_cents.parquet"), None, None).result
    assert column.name in found.drift.drifted


@pytest.mark.attack("degraded quality")
def test_monitoring_reports_that_quality_dropped(
    served: Served, contract: Contract, params: Params, settings: Settings
) -> None:
    """The outcomes no longer depend on the inputs."""
    scored, target = pl.read_parquet(served.scored), contract.target.name
    order = np.random.default_rng(0).permutation(scored.height)
    tables.write(scored.with_columns(scored[target][order].alias(target)), Path("changed.parquet"))
    found = monitoring.monitor_window(PROJECT, settings, params, Path("changed.parquet"), None, None)
    assert found.result.verdict == "degraded"


@pytest.mark.attack("skew")
def test_logged_requests_replay_to_the_last_bit(served: Served, bundle: Bundle, settings: Settings) -> None:
    """A log that differs from the batch path in one value is noticed."""
    found = skew.check_skew(PROJECT, settings, lambda: pytest.fail("the bundle is served"), rows=200)
    assert sum(found.compared.values()) == 200
    assert found.differences == ()
    (one,) = (one.prediction for one in itertools.islice(Reader(settings.prediction_log).predictions(), 1))
    changed = one._replace(score=one.score + 1e-6)
    replayed = skew.replay([changed], bundle)
    assert [each.column for each in skew.compare([changed], replayed, bundle.contract)] == [scoring.SCORE]


def test_contributions_add_up_to_the_score(served: Served, client: httpx.Client, contract: Contract) -> None:
    (row,) = json_rows(served.table.head(1), contract)
    (found,) = checked(client.post("/explain", json={"instances": [row]})).json()["explanations"]
    assert found["prediction"] == served.predictions[0]["prediction"]
    total = found["base"] + sum(one["contribution"] for one in found["contributions"])
    assert total == pytest.approx(found["score"], abs=1e-9 * max(1.0, abs(found["score"])))


@pytest.mark.attack("unexplained prediction")
def test_logged_prediction_is_explained(served: Served, settings: Settings) -> None:
    found = explain_logged(PROJECT, served.predictions[0]["id"], settings, lambda: pytest.fail("the bundle is served"))
    assert found.explanation.prediction == served.predictions[0]["prediction"]
