"""Jobs on the log of a running server: who may start them, what they change, and that no acknowledged row is lost."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from flywheel_ml.flows.retention import call_server
from flywheel_ml.prediction_log.retention import requests
from flywheel_ml.prediction_log.retention.erase import JOURNAL, erase
from flywheel_ml.prediction_log.retention.prune import prune
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import ServingError
from library.helpers import logs
from library.helpers.servers import Server, wait_for
from library.helpers.traffic import traffic

KEY = "customer-4711"
KEYS = {"ops": "ops-secret", "plain": "plain-secret", "shop": "shop-secret"}
SETTING = f"ops:log:{KEYS['ops']},{KEYS['plain']},shop:predict+feedback+admin+metrics:{KEYS['shop']}"


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Server]:
    """Two workers whose log has old rows and rows of an entity."""
    home = tmp_path_factory.mktemp("log_jobs")
    ServingFolder(home / "serving", bundle_path).roll_out("1")
    rows = [logs.make_prediction(30 if at % 2 else 2, at, KEY if at % 10 == 0 else "other") for at in range(400)]
    logs.write(home / "log", rows[:200], [*rows[200:], *map(logs.label, rows)], [logs.make_prediction(3, 999, KEY)])
    with Server(home, "--workers", "2", ML_API_KEYS=SETTING) as running:
        yield running


def post(server: Server, path: str, body: Any = None, key: str = "ops", **options: Any) -> httpx.Response:
    with server.client(headers={"X-API-Key": KEYS[key]} if key else {}) as client:
        return client.post(path, json=body or {}, **options)


def call(server: Server, kind: str, body: dict[str, Any]) -> Any:
    return call_server(server.url, KEYS["ops"], kind, body, str)


@pytest.mark.parametrize(("key", "status"), [("", 401), ("plain", 403), ("shop", 403)])
def test_job_needs_the_scope_log(keyed_server: Server, key: str, status: int) -> None:
    for path in ("/log/prune", "/log/export", "/log/erase"):
        found = post(keyed_server, path, {"key": KEY}, key)
        assert found.status_code == status
        assert found.headers["content-type"] == "application/problem+json"
    with keyed_server.client(headers={"X-API-Key": KEYS["plain"]}) as client:
        assert client.get(f"/log/jobs/{'0' * 32}").status_code == 403


def test_key_with_only_log_may_do_nothing_else(keyed_server: Server, instances: list[dict[str, Any]]) -> None:
    assert post(keyed_server, "/predict", {"instances": instances[:1]}).status_code == 403


def test_server_without_keys_starts_no_job(server: Server) -> None:
    found = post(server, "/log/erase", {"key": KEY}, "")
    assert (found.status_code, found.json()["type"]) == (403, "urn:problem:missing-scope")


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("prune", {}, "age"),
        ("prune", {"age": "soon"}, "age"),
        ("prune", {"size": "0GB"}, "size"),
        ("prune", {"older": "1d"}, "older"),
        ("export", {"since": "2020-01-01T00:00:00"}, "since"),
        ("export", {"since": "2020-01-02T00:00:00Z", "until": "2020-01-01T00:00:00Z"}, "not before"),
        ("erase", {"key": ""}, "key"),
        ("erase", {}, "key"),
    ],
)
def test_bad_body_is_one_problem(keyed_server: Server, kind: str, body: dict[str, Any], field: str) -> None:
    found = post(keyed_server, f"/log/{kind}", body)
    assert (found.status_code, found.json()["type"]) == (422, "urn:problem:invalid-request")
    assert field in found.json()["detail"].lower()


def test_unknown_job_is_404(keyed_server: Server) -> None:
    with keyed_server.client(headers={"X-API-Key": KEYS["ops"]}) as client:
        for name in ("0" * 32, "..%2F..%2Fexports", "x"):
            assert client.get(f"/log/jobs/{name}").status_code == 404


def test_client_names_wrong_scope_and_silent_server_in_one_line(keyed_server: Server) -> None:
    with pytest.raises(ServingError, match=r"answered 403: .*scope 'log'"):
        call_server(keyed_server.url, KEYS["plain"], "prune", {"age": "7d"}, str)
    with pytest.raises(ServingError, match=r"answered 401: .*ML_LOG_KEY"):
        call_server(keyed_server.url, "", "prune", {"age": "7d"}, str)
    with pytest.raises(ServingError, match="does not answer"):
        call_server("http://127.0.0.1:9", KEYS["ops"], "prune", {"age": "7d"}, str)


def test_jobs_reach_the_files_of_all_workers(keyed_server: Server, instances: list[dict[str, Any]]) -> None:
    folder = Path(keyed_server.log)
    post(keyed_server, "/predict", {"instances": instances[:5]}, "shop")
    exported = call(keyed_server, "export", {})
    assert sum(exported["rows"].values()) == 406
    with pytest.raises(ServingError, match="200 rows belong to hours without a profile"):
        call(keyed_server, "prune", {"age": "7d"})
    pruned = call(keyed_server, "prune", {"age": "7d", "force": True})
    assert pruned["counts"] == {"predictions": 200, "labels": 200}
    erased = call(keyed_server, "erase", {"key": KEY})
    assert erased["failures"] == []
    assert erased["counts"] == {"predictions": 41, "labels": 40}
    assert sorted(erased["files"].values()) == [41]
    # The server lives: neither its files, journals, requests nor the states of jobs contain the key.
    assert logs.find_bytes(folder, KEY) == logs.find_bytes(keyed_server.home / "var", KEY) == []
    assert len(logs.read_ids(folder)) == 165
    with pytest.raises(ServingError, match="no predictions"):
        call(keyed_server, "export", {"until": "2001-01-01T00:00:00Z"})
    names = (keyed_server.home / "var" / "exports").rglob("*.parquet")
    assert sum(pl.read_parquet(path).height for path in names) == 406 - 41


@pytest.mark.chaos
def test_jobs_lose_no_acknowledged_row_under_load(
    tmp_path: Path, bundle_path: Path, instances: list[dict[str, Any]]
) -> None:
    ServingFolder(tmp_path / "serving", bundle_path).roll_out("1")
    folder = tmp_path / "log"
    rows = [logs.make_prediction(30 if at % 2 else 2, at, KEY if at % 10 == 0 else "other") for at in range(6000)]
    logs.write(folder, [*rows, *map(logs.label, rows)])
    log = logs.open_log(folder)
    with Server(tmp_path) as server, traffic(server, instances[0], pause=0.01) as seen:
        seen.sees(20)
        pruned = prune(log, timedelta(days=7))
        seen.sees(20)
        erased = erase(log, KEY)
        seen.sees(20)
    assert (pruned.counts["predictions"], erased.counts["predictions"], erased.failures) == (3000, 600, [])
    assert seen.failures == []
    left = logs.read_ids(folder)
    assert set(seen.ids) <= left
    assert left == set(seen.ids) | {row.id for row in rows[::2] if row.entity_id != KEY}


@pytest.mark.chaos
def test_killed_server_completes_an_erasure_at_its_next_start(tmp_path: Path, bundle_path: Path) -> None:
    ServingFolder(tmp_path / "serving", bundle_path).roll_out("1")
    folder = tmp_path / "log"
    rows = [logs.make_prediction(2, at, KEY if at % 2 else "other") for at in range(20_000)]
    logs.write(folder, [*rows, *map(logs.label, rows)])
    with Server(tmp_path, ML_API_KEYS=f"ops:log:{KEYS['ops']}") as server:
        job = post(server, "/log/erase", {"key": KEY}).json()["job"]
        wait_for(lambda: bool(list((folder / requests.FOLDER).glob(f"{JOURNAL}*"))))
        time.sleep(0.2)
        state = json.loads((folder / requests.FOLDER / f"job-{job}.json").read_text())
        server.process.kill()
        server.process.wait()
        with suppress(ProcessLookupError):
            os.kill(state["pid"], signal.SIGKILL)
    with Server(tmp_path, ML_API_KEYS=f"ops:log:{KEYS['ops']}") as server:
        wait_for(lambda: not list((folder / requests.FOLDER).glob(f"{JOURNAL}*")), 60)
        assert logs.find_bytes(folder, KEY) == []
        assert len(logs.read_ids(folder)) == 10_000
        with server.client(headers={"X-API-Key": KEYS["ops"]}) as client:
            assert client.get(f"/log/jobs/{job}").json()["state"] == "failed"
