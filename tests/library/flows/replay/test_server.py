"""The client of a replay against a real server: rows that the contract rejects, labels, a rollout to follow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.replay.steps.server import Client
from flywheel_ml.prediction_log import Reader
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import ServingError
from library.helpers.servers import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    folder = ServingFolder(home / "serving", bundle_path)
    folder.roll_out("1")
    folder.add("2")
    with Server(home) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    found = Client(server.url)
    yield found
    found.close()


def test_row_that_breaks_the_contract_costs_no_other_row_its_answer(
    client: Client, table: pl.DataFrame, contract: Contract
) -> None:
    instances: list[dict[str, Any]] = json_rows(table.head(25), contract)
    instances[7]["distance"] = instances[20]["distance"] = -1.0
    found = client.predict(instances, 10)
    assert set(range(25)) - set(found.predictions) == {7, 20}
    assert "distance" in found.reason
    assert {one["variant"] for one in found.predictions.values()} == {"champion"}


def test_labels_reach_the_log(client: Client, server: Server, table: pl.DataFrame, contract: Contract) -> None:
    found = client.predict(json_rows(table.head(5), contract), 100).predictions
    ids = [one["id"] for one in found.values()]
    client.send_labels([(name, True) for name in ids])
    labelled = {one.prediction.id: one.label for one in Reader(server.log).labelled()}
    assert [labelled.get(name) for name in ids] == ["true"] * 5


def test_unknown_label_is_an_error_that_names_the_route(client: Client) -> None:
    with pytest.raises(ServingError, match="/feedback: the replay's server answered 404"):
        client.send_labels([("0" * 32, True)])


def test_client_follows_the_rollout(client: Client, server: Server, bundle_path: Path) -> None:
    folder = ServingFolder(server.home / "serving", bundle_path)
    settings = Settings.model_construct(serving_folder=folder.path)
    for version in ("2", "1"):
        folder.point(folder.ref(version))
        client.follow(settings)
        assert client._request("GET", "/model")[1]["version"] == version


def test_server_that_is_gone_is_one_line() -> None:
    client = Client("http://127.0.0.1:9")
    with pytest.raises(ServingError, match="/feedback: the replay's server does not answer"):
        client.send_labels([("0" * 32, True)])
