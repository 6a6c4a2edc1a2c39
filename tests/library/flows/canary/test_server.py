"""One ramp through a running server: a broken challenger goes back, a good one becomes champion."""

from pathlib import Path
from typing import Any

import httpx
import polars as pl

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.flows.canary import controller, starting
from flywheel_ml.model.registration.registry import CHAMPION
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import ServingFolder
from library.flows.canary.conftest import Canary
from library.helpers import faulty_models, store
from library.helpers.commands import wait_until
from library.helpers.project import PROJECT
from library.helpers.servers import Server

ROWS_PER_REQUEST = 10
RELAXED = {
    "max_error_rate": 0.05,
    "min_latency_ms": 20_000.0,
    "min_rows": 60,
    "min_shadow_labels": 200,
    "shares": (0.5,),
}
"""A machine that runs tests is busy, and a challenger's thread has a low priority."""


class Traffic:
    """Sends rows and their labels to a server."""

    def __init__(self, client: httpx.Client, instances: list[dict[str, Any]], labels: list[Any]) -> None:
        self._client, self._instances, self._labels = client, instances, labels

    def send(self) -> None:
        """Send all rows, and their labels."""
        outcomes = []
        for at in range(0, len(self._instances), ROWS_PER_REQUEST):
            body = {"instances": self._instances[at : at + ROWS_PER_REQUEST]}
            answer = self._client.post("/predict", json=body)
            assert answer.status_code == httpx.codes.OK, answer.text
            ids = [row["id"] for row in answer.json()["predictions"]]
            outcomes += [
                {"id": name, "label": label}
                for name, label in zip(ids, self._labels[at : at + ROWS_PER_REQUEST], strict=True)
            ]
        accepted = self._client.post("/feedback", json={"labels": outcomes})
        assert accepted.status_code in (httpx.codes.OK, httpx.codes.ACCEPTED), accepted.text


def look(canary: Canary) -> controller.Look:
    return controller.look(PROJECT, canary.settings, canary.params)


def test_ramp_through_a_server(
    canary: Canary, table: pl.DataFrame, contract: Contract, bundle_path: Path, folder: Path, tmp_path: Path
) -> None:
    # Entities may not repeat, or a hundred rows would count as few.
    frame = table.head(240)
    instances = json_rows(frame, contract)
    labels = frame[contract.target.name].to_list()
    broken = ServingFolder(tmp_path / "broken", bundle_path)
    broken.add("3", model=faulty_models.build_model(Bundle.open(bundle_path, features=PROJECT.features), "raised"))
    canary.registry.register(broken.bundle("3"), store.PASSED_CHECKS, {}, {}, [])
    canary.with_canary(**RELAXED)
    places = {
        "ML_SERVING_FOLDER": str(folder / canary.settings.serving_folder),
        "ML_PREDICTION_LOG": str(folder / canary.settings.prediction_log),
        "ML_CHALLENGER_TIMEOUT_SECONDS": "10",
    }
    home = tmp_path / "server"
    home.mkdir()
    with Server(home, **places) as server, server.client() as client:
        traffic = Traffic(client, instances, labels)

        def experiment() -> Any:
            told = client.get("/model").json()
            return told["challenger"] or told["shadow"]

        starting.start(PROJECT, canary.settings, canary.params, "3")
        wait_until(lambda: experiment() is not None and experiment()["version"] == "3")
        traffic.send()
        wait_until(lambda: look(canary).action == "roll back", seconds=20)
        wait_until(lambda: experiment() is None)

        starting.start(PROJECT, canary.settings, canary.params, "2")
        wait_until(lambda: experiment() is not None)
        traffic.send()
        wait_until(lambda: look(canary).action == "advance", seconds=20)
        wait_until(lambda: (experiment() or {}).get("share") == 0.5)
        traffic.send()
        wait_until(lambda: look(canary).action == "promote", seconds=20)
        wait_until(lambda: client.get("/model").json()["version"] == "2")
    champion = canary.registry.find_alias(CHAMPION)
    assert champion is not None
    assert champion.number == "2"
