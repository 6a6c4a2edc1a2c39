"""Real servers on free ports, and serving folders for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.servers import Server


@pytest.fixture
def folder(tmp_path: Path, bundle_path: Path) -> ServingFolder:
    """A serving folder of one's own, nothing rolled out yet."""
    return ServingFolder(tmp_path / "serving", bundle_path)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Server]:
    """One server for all tests that leave its model and process alone; version 1 is champion."""
    home = tmp_path_factory.mktemp("server")
    ServingFolder(home / "serving", bundle_path).roll_out("1")
    with Server(home, ML_MAX_BODY_BYTES="200000", ML_MAX_INSTANCES="200") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of that server."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def instances(table: pl.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    """A hundred rows as a client would send them."""
    return json_rows(table.head(100), contract)


@pytest.fixture(scope="session")
def example(client: httpx.Client) -> dict[str, Any]:
    """The instance that the docs page offers."""
    description = client.get("/openapi.json").json()
    body = description["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    instance: dict[str, Any] = body["examples"][0]["instances"][0]
    return instance
