"""/feedback: labels are validated, stored once and never replaced."""

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from flywheel_ml.prediction_log import Reader, to_datetime
from library.helpers.servers import Server


@pytest.fixture
def prediction(client: httpx.Client, example: dict[str, Any]) -> str:
    """The id of a fresh prediction."""
    return str(client.post("/predict", json={"instances": [example]}).json()["predictions"][0]["id"])


def label(client: httpx.Client, *labels: Any) -> httpx.Response:
    return client.post("/feedback", json={"labels": [{"id": name, "label": value} for name, value in labels]})


def test_a_label_is_in_the_log_once_it_is_acknowledged(server: Server, client: httpx.Client, prediction: str) -> None:
    response = label(client, (prediction, True))
    assert (response.status_code, response.json()) == (200, {"accepted": 1})
    found = next(row for row in Reader(server.log).predictions() if row.prediction.id == prediction)
    assert json.loads(found.label or "null") is True


def test_repeated_label_gets_the_same_response(client: httpx.Client, prediction: str) -> None:
    first, again = label(client, (prediction, False)), label(client, (prediction, False), (prediction, False))
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == {"accepted": 1}


def test_another_label_for_the_same_prediction_is_a_conflict(
    server: Server, client: httpx.Client, prediction: str
) -> None:
    label(client, (prediction, False))
    response = label(client, (prediction, True))
    assert (response.status_code, response.json()["ids"]) == (409, [prediction])
    assert Reader(server.log).labels([prediction]) == {prediction: "false"}


def test_a_request_that_contradicts_itself_is_a_conflict(server: Server, client: httpx.Client, prediction: str) -> None:
    assert label(client, (prediction, False), (prediction, True)).status_code == 409
    assert Reader(server.log).labels([prediction]) == {}


def test_unknown_ids_reject_the_whole_request(server: Server, client: httpx.Client, prediction: str) -> None:
    response = label(client, (prediction, True), *((f"nobody-{at}", True) for at in range(30)))
    assert response.status_code == 404
    assert response.json()["ids"] == [f"nobody-{at}" for at in range(20)]
    assert Reader(server.log).labels([prediction]) == {}


def test_label_may_have_a_timestamp(server: Server, client: httpx.Client, prediction: str) -> None:
    labels = [{"id": prediction, "label": True, "at": "2013-06-15T10:30:00+02:00"}]
    for _ in range(2):
        assert client.post("/feedback", json={"labels": labels}).json() == {"accepted": 1}
    assert label(client, (prediction, True)).json() == {"accepted": 1}
    with sqlite3.connect(Path(server.log) / "serve-0.db") as log:
        found = log.execute("SELECT timestamp_us FROM labels WHERE prediction_id = ?", (prediction,)).fetchall()
    log.close()
    assert [to_datetime(at) for (at,) in found] == [datetime(2013, 6, 15, 8, 30, tzinfo=UTC)]


def test_label_from_the_future_is_rejected(server: Server, client: httpx.Client, prediction: str) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    response = client.post("/feedback", json={"labels": [{"id": prediction, "label": True, "at": tomorrow}]})
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert (fault["field"], fault["rule"]) == ("at", "must not be in the future")
    assert Reader(server.log).labels([prediction]) == {}
    # Clocks of two machines never agree.
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    assert client.post("/feedback", json={"labels": [{"id": prediction, "label": True, "at": soon}]}).is_success


@pytest.mark.parametrize("value", [2, "maybe", None, "NA", 0.5, []])
def test_label_of_a_wrong_type_is_rejected(client: httpx.Client, prediction: str, value: Any) -> None:
    response = label(client, (prediction, value))
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "label"


def send(client: httpx.Client, *values: dict[str, Any]) -> httpx.Response:
    return client.post("/feedback", json={"labels": list(values)})


def test_value_of_a_metric_is_stored_once_it_is_acknowledged(
    server: Server, client: httpx.Client, prediction: str
) -> None:
    revenue = {"id": prediction, "metric": "revenue", "value": 12.5}
    margin = {"id": prediction, "metric": "margin", "value": -3, "at": "2013-06-15T10:30:00Z"}
    for _ in range(2):
        response = send(client, revenue, margin, {"id": prediction, "label": True})
        assert (response.status_code, response.json()) == (200, {"accepted": 3})
    found = {(one.metric, one.value) for one in Reader(server.log).metric_values([prediction])}
    assert found == {("revenue", 12.5), ("margin", -3.0)}
    assert Reader(server.log).labels([prediction]) == {prediction: "true"}


def test_another_value_of_the_same_metric_is_a_conflict(server: Server, client: httpx.Client, prediction: str) -> None:
    send(client, {"id": prediction, "metric": "revenue", "value": 12.5})
    response = send(client, {"id": prediction, "metric": "revenue", "value": 13})
    assert (response.status_code, response.json()["ids"]) == (409, [prediction])
    twice = [{"id": prediction, "metric": "margin", "value": number} for number in (1, 2)]
    assert send(client, *twice).status_code == 409
    assert [one.value for one in Reader(server.log).metric_values([prediction])] == [12.5]


def test_value_for_an_unknown_prediction_rejects_the_request(
    server: Server, client: httpx.Client, prediction: str
) -> None:
    known = {"id": prediction, "metric": "revenue", "value": 1}
    response = send(client, known, {**known, "id": "nobody"})
    assert (response.status_code, response.json()["ids"]) == (404, ["nobody"])
    assert Reader(server.log).metric_values([prediction]) == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"value": "12.5"}, "value"),
        ({"value": True}, "value"),
        ({"value": None}, "value"),
        ({"value": [1]}, "value"),
        ({"value": 1e13}, "value"),
        ({"value": -1e13}, "value"),
        ({"value": 10**400}, "value"),
        ({"metric": "Revenue"}, "metric"),
        ({"metric": ""}, "metric"),
        ({"metric": "a" * 64}, "metric"),
        ({"metric": "order value"}, "metric"),
        ({"metric": "loss"}, "metric"),
        ({"metric": 7}, "metric"),
        ({"unit": "EUR"}, "unit"),
        ({"at": "2999-01-01"}, "at"),
    ],
)
def test_wrong_value_of_a_metric_is_rejected_by_field(
    server: Server, client: httpx.Client, prediction: str, changed: dict[str, Any], field: str
) -> None:
    response = send(client, {"id": prediction, "metric": "revenue", "value": 1, **changed})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field
    assert Reader(server.log).metric_values([prediction]) == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_value_that_is_not_finite_is_rejected(client: httpx.Client, prediction: str, text: str) -> None:
    body = f'{{"labels": [{{"id": "{prediction}", "metric": "revenue", "value": {text}}}]}}'
    response = client.post("/feedback", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["rule"] == "must be a finite number"
