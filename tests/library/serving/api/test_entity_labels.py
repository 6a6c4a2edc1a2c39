"""/feedback accepts labels of an entity at a time, which join the predictions of that entity."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.prediction_log import Reader
from library.helpers.servers import Server


@pytest.fixture
def entity() -> str:
    return f"entity-{uuid.uuid4()}"


def predict(client: httpx.Client, contract: Contract, example: dict[str, Any], entity: str) -> str:
    assert contract.id is not None
    body = {"instances": [{**example, contract.id.name: entity}]}
    return str(client.post("/predict", json=body).json()["predictions"][0]["id"])


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def send(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/feedback", json={"labels": [fields]})


def find_labels(server: Server, entity: str) -> dict[str, str | None]:
    rows = Reader(server.log).predictions()
    return {row.prediction.id: row.label for row in rows if row.prediction.entity_id == entity}


def test_label_joins_all_earlier_predictions_of_its_entity(
    server: Server, client: httpx.Client, contract: Contract, example: dict[str, Any], entity: str
) -> None:
    first, second = (predict(client, contract, example, entity) for _ in range(2))
    stranger = predict(client, contract, example, f"{entity}-2")
    assert send(client, entity=entity, timestamp=in_seconds(5), label=True).json() == {"accepted": 1}
    assert find_labels(server, entity) == {first: "true", second: "true"}
    assert find_labels(server, f"{entity}-2") == {stranger: None}


def test_label_before_the_prediction_does_not_join(
    server: Server, client: httpx.Client, contract: Contract, example: dict[str, Any], entity: str
) -> None:
    name = predict(client, contract, example, entity)
    assert send(client, entity=entity, timestamp=in_seconds(-60), label=True).is_success
    assert find_labels(server, entity) == {name: None}


def test_label_of_the_prediction_takes_precedence(
    server: Server, client: httpx.Client, contract: Contract, example: dict[str, Any], entity: str
) -> None:
    name = predict(client, contract, example, entity)
    assert send(client, entity=entity, timestamp=in_seconds(5), label=True).is_success
    assert send(client, id=name, label=False).is_success
    assert find_labels(server, entity) == {name: "false"}


def test_repeated_entity_label_is_stored_once(server: Server, client: httpx.Client, entity: str) -> None:
    when = in_seconds(-1)
    for _ in range(2):
        assert send(client, entity=entity, timestamp=when, label=True).json() == {"accepted": 1}
    assert len(Reader(server.log).entity_labels([entity])) == 1


def test_conflicting_entity_label_is_rejected_and_named(server: Server, client: httpx.Client, entity: str) -> None:
    when = in_seconds(-1)
    assert send(client, entity=entity, timestamp=when, label=True).is_success
    response = send(client, entity=entity, timestamp=when, label=False)
    assert (response.status_code, response.json()["ids"]) == (409, [entity])
    assert [row.label for row in Reader(server.log).entity_labels([entity])] == ["true"]


def test_label_of_an_unknown_entity_is_kept(server: Server, client: httpx.Client, entity: str) -> None:
    assert send(client, entity=entity, timestamp=in_seconds(-1), label=True).json() == {"accepted": 1}
    assert find_labels(server, entity) == {}


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"entity": "a"}, "timestamp", "is required"),
        ({"entity": "a", "timestamp": "2999-01-01T00:00:00Z"}, "timestamp", "must not be in the future"),
        ({"entity": "", "timestamp": "2013-01-01T00:00:00Z"}, "entity", "must have at least 1 character"),
        ({"entity": "a", "timestamp": "2013-01-01T00:00:00Z", "id": "b"}, "id", "unknown field; "),
        ({"entity": "a", "timestamp": "yesterday"}, "timestamp", "must be "),
        ({"entity": 1.5, "timestamp": "2013-01-01T00:00:00Z"}, "entity", "must be a string"),
        ({}, "id", "is required"),
    ],
)
def test_malformed_entity_label_is_rejected_in_one_line(
    client: httpx.Client, fields: dict[str, Any], field: str, rule: str
) -> None:
    response = send(client, label=True, **fields)
    assert response.status_code == 422
    fault = response.json()["errors"][0]
    assert fault["field"] == field
    assert fault["rule"].startswith(rule)
