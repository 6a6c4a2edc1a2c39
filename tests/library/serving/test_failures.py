"""Responses while a model, the log or a connection fails."""

import asyncio
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flywheel_ml.core.bundle import MODEL, Bundle
from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log import Reader
from flywheel_ml.serving.app import create_app
from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.codecs.native import NATIVE
from flywheel_ml.serving.prediction.batcher import MAX_INLINE_BODY_BYTES
from flywheel_ml.serving.prediction.requests import PredictRequest
from flywheel_ml.testing.servers import ServingFolder
from library.helpers import faulty_models, protocol_clients
from library.helpers.servers import InProcess, wait_for

V2 = "/v2/models/flights"
ASKED = ("/readyz", "/ping", "/model", "/v2/health/ready", V2, f"{V2}/ready")
SENT = ("/ping", "/predict", "/explain", "/feedback", "/invocations", f"{V2}/infer", f"{V2}/versions/1/infer")


def test_server_without_model_waits_for_one(folder: ServingFolder, tmp_path: Path, example: dict[str, Any]) -> None:
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    with InProcess(app) as caller:
        assert caller.request("GET", "/healthz").status_code == 200
        for method, path in (*(("GET", path) for path in ASKED), *(("POST", path) for path in SENT)):
            response = caller.request(method, path)
            assert response.status_code == 503
            assert response.json()["type"] == "urn:problem:no-model"
            assert int(response.headers["retry-after"]) > 0
        assert caller.request("GET", "/openapi.json").status_code == 200
        folder.roll_out("1")
        wait_for(lambda: caller.request("GET", "/readyz").status_code == 200)
        assert caller.request("POST", "/predict", json={"instances": [example]}).json()["degraded"] is False
        # No champion at all, on purpose: nothing answers in its place.
        folder.point(None)
        wait_for(lambda: caller.request("GET", "/readyz").status_code == 503)


def test_broken_champion_falls_back_to_the_previous_model(
    folder: ServingFolder, tmp_path: Path, example: dict[str, Any]
) -> None:
    previous, champion = folder.add("1"), folder.add("2")
    folder.point(champion, previous)
    (folder.bundle("2") / MODEL).unlink()
    log = str(tmp_path / "log")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=log))
    with InProcess(app) as caller:
        answer = caller.request("POST", "/predict", json={"instances": [example]}).json()
        assert (answer["model_version"], answer["variant"], answer["degraded"]) == ("1", "fallback", True)
        assert f"{MODEL} is missing" in caller.request("GET", "/model").json()["rejected"]["reason"]
        assert "predictions_degraded_total 1.0" in caller.request("GET", "/metrics").text
    row = next(Reader(log).predictions()).prediction
    assert (row.variant, row.degraded) == ("fallback", True)


def test_large_request_gets_the_same_answer_off_the_loop(
    folder: ServingFolder, tmp_path: Path, example: dict[str, Any]
) -> None:
    folder.roll_out("1")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    with InProcess(app) as caller:
        count = 2 * MAX_INLINE_BODY_BYTES // len(json.dumps(example))
        body = {"instances": [example] * count}
        assert len(json.dumps(body)) > MAX_INLINE_BODY_BYTES
        many = caller.request("POST", "/predict", json=body).json()["predictions"]
        one = caller.request("POST", "/predict", json={"instances": [example]}).json()["predictions"][0]
    assert len(many) == count
    assert all(answer["probabilities"] == one["probabilities"] for answer in many)


def batches(caller: InProcess) -> float:
    lines = caller.request("GET", "/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("prediction_batches_total"))


def test_batched_requests_share_a_model_call_but_not_errors(
    folder: ServingFolder, tmp_path: Path, example: dict[str, Any]
) -> None:
    folder.roll_out("1")
    log = str(tmp_path / "log")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=log))
    with InProcess(app) as caller:
        alone = caller.request("POST", "/predict", json={"instances": [example]}).json()["predictions"][0]
        before = batches(caller)
        good, two = (json.dumps({"instances": [example] * count}).encode() for count in (1, 2))
        answers = caller.send_together("/predict", [good, b"{", two, b'{"instances": [{}]}', good])
        assert batches(caller) == before + 1
    assert [answer.status_code for answer in answers] == [200, 400, 200, 422, 200]
    told = [one for answer in (answers[0], answers[2], answers[4]) for one in answer.json()["predictions"]]
    assert [one["probabilities"] for one in told] == [alone["probabilities"]] * 4
    assert {alone["id"], *(one["id"] for one in told)} == {row.prediction.id for row in Reader(log).predictions()}


@pytest.mark.parametrize("fault", faulty_models.FAULTS)
def test_rows_that_break_the_model_get_the_class_prior(
    folder: ServingFolder, tmp_path: Path, example: dict[str, Any], fault: faulty_models.Fault, bundle_path: Path
) -> None:
    bundle = Bundle.open(bundle_path)
    folder.roll_out("1", model=faulty_models.build_model(bundle, fault))
    log = str(tmp_path / "log")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=log))
    with InProcess(app) as caller:
        good, bad = (
            json.dumps({"instances": [example] * count}).encode() for count in (1, faulty_models.SAFE_ROWS + 1)
        )
        answers = caller.send_together("/predict", [good, bad, good])
        headers = {"Content-Type": ARROW, "Accept": ARROW}
        columns = caller.request(
            "POST",
            "/predict",
            content=protocol_clients.to_arrow_stream([example] * (faulty_models.SAFE_ROWS + 1)),
            headers=headers,
        )
        metrics = caller.request("GET", "/metrics").text
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    first, second, third = (answer.json() for answer in answers)
    assert (first["degraded"], second["degraded"], third["degraded"]) == (False, True, False)
    table = pa.ipc.open_stream(columns.content).read_all()
    assert table.schema.metadata[b"degraded"] == b"true"
    given = second["predictions"][-1]
    assert given.get("variant", second["variant"]) == "fallback"
    assert list(given["probabilities"].values()) == pytest.approx(bundle.manifest.prior)
    assert list(first["predictions"][0]["probabilities"].values()) == [0.5, 0.5]
    stood_in = 1 if fault == "not_finite" else faulty_models.SAFE_ROWS + 1
    assert f"predictions_degraded_total {2 * stood_in}.0" in metrics
    logged = [row.prediction for row in Reader(log).predictions()]
    assert sorted(row.variant for row in logged) == ["champion"] * (8 - 2 * stood_in) + ["fallback"] * 2 * stood_in
    assert all(row.degraded == (row.variant == "fallback") for row in logged)


def test_class_prior_answers_until_a_model_is_loaded(
    folder: ServingFolder, tmp_path: Path, example: dict[str, Any], bundle_path: Path
) -> None:
    previous, champion = folder.add("1"), folder.add("2")
    folder.point(champion, previous)
    models = [folder.bundle(version) / MODEL for version in "12"]
    content = models[1].read_bytes()
    for model in models:
        model.write_bytes(b"x")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    with InProcess(app) as caller:

        def ask() -> dict[str, Any]:
            found: dict[str, Any] = caller.request("POST", "/predict", json={"instances": [example]}).json()
            return found

        answer = ask()
        assert (answer["model_version"], answer["variant"], answer["degraded"]) == ("2", "fallback", True)
        prior = Bundle.open(bundle_path).manifest.prior
        assert list(answer["predictions"][0]["probabilities"].values()) == pytest.approx(prior)
        assert caller.request("POST", "/predict", json={"instances": [{}]}).status_code == 422
        assert f"{MODEL} was changed" in caller.request("GET", "/model").json()["rejected"]["reason"]
        models[1].write_bytes(content)
        wait_for(lambda: ask()["degraded"] is False)
        assert ask()["predictions"][0]["probabilities"] != answer["predictions"][0]["probabilities"]


def test_broken_connection_does_not_delay_others(
    folder: ServingFolder, tmp_path: Path, example: dict[str, Any]
) -> None:
    folder.roll_out("1")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    body, heard = json.dumps({"instances": [example]}).encode(), list[bytes | Exception]()

    def gone(_: bytes | Exception) -> None:
        raise ConnectionResetError

    async def ask() -> None:
        async with app.router.lifespan_context(app), asyncio.timeout(10):
            service = app.state.service
            for done in (gone, heard.append, gone, heard.append):
                service.batcher.submit(service.deployment, PredictRequest(body, NATIVE, time.perf_counter()), done)
                await asyncio.sleep(0)
            while len(heard) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(ask())
    assert all(isinstance(found, bytes) for found in heard)


def test_locked_log_delays_only_predictions(folder: ServingFolder, tmp_path: Path, example: dict[str, Any]) -> None:
    folder.roll_out("1")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    with InProcess(app) as caller, ThreadPoolExecutor(2) as pool:
        with sqlite3.connect(tmp_path / "log" / "serve-0.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            asked = [pool.submit(caller.request, "POST", "/predict", json={"instances": [example]}) for _ in range(2)]
            assert caller.request("GET", "/healthz").status_code == 200
            assert not any(one.done() for one in asked)
            other.execute("ROLLBACK")
        other.close()
        found = [one.result(10) for one in asked]
    assert [answer.status_code for answer in found] == [200, 200]
    given = {answer.json()["predictions"][0]["id"] for answer in found}
    assert {row.prediction.id for row in Reader(str(tmp_path / "log")).predictions()} == given


def test_failed_commit_is_rejected_and_logged(
    folder: ServingFolder, tmp_path: Path, example: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    folder.roll_out("1")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    with InProcess(app) as caller:
        kept = caller.request("POST", "/predict", json={"instances": [example]}).json()["predictions"][0]["id"]
        with sqlite3.connect(tmp_path / "log" / "serve-0.db") as other:
            other.execute("ALTER TABLE predictions RENAME TO gone")
            other.execute("ALTER TABLE labels RENAME TO gone_too")
        other.close()
        for path, body in (
            ("/predict", {"instances": [example]}),
            ("/feedback", {"labels": [{"id": kept, "label": True}]}),
        ):
            refused = caller.request("POST", path, json=body)
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:problem:prediction-log-unavailable"
            assert int(refused.headers["retry-after"]) > 0
            assert "gone" not in refused.text
        assert "prediction_log_commit_failures_total 1.0" in caller.request("GET", "/metrics").text
    said = [record.getMessage() for record in caplog.records if "prediction log" in record.getMessage()]
    assert said[0] == "the prediction log is unavailable: no such table: predictions"


def test_unexpected_error_is_logged_but_not_revealed(
    folder: ServingFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.roll_out("1")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the caller's own data")

    with InProcess(app) as caller:
        answer = caller.request("GET", "/broken")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:problem:internal-error"
    assert "RuntimeError" not in answer.text
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    line = next(line for line in lines if line["event"] == "unexpected")
    assert line["error"] == "RuntimeError"
    assert line["request_id"] == answer.json()["request_id"]
    assert any(frame.endswith(" broken") for frame in line["where"])
    assert "own data" not in json.dumps(lines)
