"""/explain: responses, errors, separation from predictions, and no log rows."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import BACKGROUND, MODEL
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.serving_folder import Challenger
from flywheel_ml.core.settings import Settings
from flywheel_ml.explanation import explanation
from flywheel_ml.explanation.explanation import Explanation
from flywheel_ml.flows.explaining import explain_logged
from flywheel_ml.prediction_log import Reader
from flywheel_ml.serving.api import explaining
from flywheel_ml.serving.api.explaining import MAX_WAITING
from flywheel_ml.serving.app import create_app
from flywheel_ml.serving.schema.documents import Explanations
from flywheel_ml.testing.servers import ServingFolder
from library.helpers import faulty_models
from library.helpers.project import PROJECT
from library.helpers.protocol_clients import send_arrow, to_arrow_stream
from library.helpers.servers import InProcess, Server, wait_for
from library.serving.api.test_predict import JSON, faults, problem_of

Instance = dict[str, Any]
ROOM = 1 + MAX_WAITING


def explain(client: httpx.Client, *instances: Any) -> httpx.Response:
    return client.post("/explain", json={"instances": instances})


@pytest.fixture
def caller(folder: ServingFolder, tmp_path: Path) -> Iterator[InProcess]:
    """An application whose serving folder is still empty."""
    settings = Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log"))
    with InProcess(create_app(settings)) as here:
        yield here


class TestAnswers:
    def test_contributions_add_up_to_the_predicted_score(
        self, client: httpx.Client, instances: list[Instance], contract: Contract
    ) -> None:
        for row in instances[:3]:
            told = Explanations.model_validate_json(explain(client, row).content)
            predicted = client.post("/predict", json={"instances": [row]}).json()
            (found,) = told.explanations
            assert found.score == predicted["predictions"][0]["probabilities"]["true"]
            assert found.prediction == predicted["predictions"][0]["prediction"]
            assert found.explained_class is True
            assert {one.column: one.value for one in found.contributions} == {
                column.name: row.get(column.name) for column in contract.inputs
            }
            assert found.base + sum(one.contribution for one in found.contributions) == pytest.approx(
                found.score, abs=1e-12
            )
            assert (told.model_version, told.variant, told.degraded) == ("1", "champion", False)

    def test_the_same_row_gets_the_same_bytes(self, client: httpx.Client, example: Instance) -> None:
        assert explain(client, example).content == explain(client, example).content

    def test_no_explanation_is_logged_as_a_prediction(
        self, client: httpx.Client, server: Server, example: Instance
    ) -> None:
        before = sum(1 for _ in Reader(server.log).predictions())
        assert explain(client, example).status_code == httpx.codes.OK
        assert sum(1 for _ in Reader(server.log).predictions()) == before
        assert 'http_requests_total{method="POST",route="/explain",status="200"}' in client.get("/metrics").text


@pytest.mark.parametrize("way", ["JSON", "Arrow"])
def test_explanation_by_id_equals_explanation_over_http(
    server: Server, client: httpx.Client, instances: list[Instance], way: str
) -> None:
    rows = instances[3:6]
    response = (
        send_arrow(client, to_arrow_stream(rows))
        if way == "Arrow"
        else client.post("/predict", json={"instances": rows})
    )
    name = response.json()["predictions"][2]["id"]
    settings = Settings(_env_file=None, serving_folder=server.home / "serving", prediction_log=server.log)
    found = explain_logged(PROJECT, name, settings, lambda: pytest.fail("the registry was asked"))
    told = Explanations.model_validate_json(explain(client, rows[2]).content).explanations[0]
    assert found.prediction.id == name
    assert (found.explanation.score, found.explanation.base) == (told.score, told.base)
    assert [(one.column, one.contribution) for one in found.explanation.contributions] == [
        (one.column, one.contribution) for one in told.contributions
    ]


class TestRefusals:
    def test_one_row_is_explained_at_a_time(self, client: httpx.Client, example: Instance) -> None:
        assert faults(explain(client, example, example)) == [("instances", "must have at most 1 item")]
        assert faults(explain(client)) == [("instances", "must have at least 1 item")]

    def test_rows_are_validated_like_prediction_rows(self, client: httpx.Client, example: Instance) -> None:
        name = max(example, key=len)
        rows: list[Any] = [{**example, name: ["no", "value"]}, {**example, f"{name}_": 1}, "row", {}]
        for row in rows:
            predicted = client.post("/predict", json={"instances": [row]})
            assert faults(explain(client, row)) == faults(predicted)

    def test_prediction_id_is_rejected_in_place_of_a_row(self, client: httpx.Client, example: Instance) -> None:
        told = client.post("/predict", json={"instances": [example]}).json()["predictions"][0]
        refused = client.post("/explain", json={"id": told["id"]})
        assert ("id", "unknown member of the request") in faults(refused)
        assert not set(example) & set(refused.json())

    @pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b" " * 200_001, 413)])
    def test_missing_or_large_body_is_rejected(self, client: httpx.Client, body: bytes, status: int) -> None:
        assert problem_of(client.post("/explain", content=body, headers=JSON)).status == status


class TestNothingToExplain:
    def request_explanation(self, caller: InProcess, example: Instance) -> str:
        wait_for(lambda: caller.request("GET", "/readyz").status_code == httpx.codes.OK)
        assert caller.request("POST", "/predict", json={"instances": [example]}).status_code == httpx.codes.OK
        answer = caller.request("POST", "/explain", json={"instances": [example]})
        assert answer.status_code == httpx.codes.CONFLICT
        assert answer.json()["type"] == "urn:problem:not-explainable"
        return str(answer.json()["detail"])

    def test_old_bundle_reports_how_to_get_explanations(
        self, folder: ServingFolder, caller: InProcess, example: Instance
    ) -> None:
        folder.add("1")
        path = folder.bundle("1")
        (path / BACKGROUND).unlink()
        bundle.write_manifest(path, {**json.loads((path / bundle.MANIFEST).read_text()), "format": 1})
        folder.point(folder.ref("1"))
        assert "train again" in self.request_explanation(caller, example)

    def test_class_prior_is_not_explainable(self, folder: ServingFolder, caller: InProcess, example: Instance) -> None:
        folder.roll_out("1")
        (folder.bundle("1") / MODEL).unlink()
        assert "its class prior gives every row the same prediction" in self.request_explanation(caller, example)

    @pytest.mark.parametrize("fault", faulty_models.FAULTS)
    def test_model_failure_is_reported_without_paths(
        self, folder: ServingFolder, caller: InProcess, example: Instance, bundle_path: Path, fault: faulty_models.Fault
    ) -> None:
        folder.roll_out("1", model=faulty_models.build_model(bundle.Bundle.open(bundle_path), fault))
        assert str(folder.path) not in self.request_explanation(caller, example)


def test_changed_background_is_rejected_by_name(folder: ServingFolder, caller: InProcess, example: Instance) -> None:
    ref = folder.roll_out("1")
    wait_for(lambda: caller.request("GET", "/readyz").status_code == httpx.codes.OK)
    before = caller.request("POST", "/explain", json={"instances": [example]}).content
    other = folder.add("2")
    (folder.bundle("2") / BACKGROUND).write_text("[]\n")
    folder.point(other, ref)
    refused: dict[str, Any] = {}

    def is_refused() -> bool:
        refused.update(caller.request("GET", "/model").json()["rejected"] or {})
        return bool(refused)

    wait_for(is_refused)
    assert f"{BACKGROUND} was changed after its manifest was written" in refused["reason"]
    after = json.loads(caller.request("POST", "/explain", json={"instances": [example]}).content)
    assert after["explanations"] == json.loads(before)["explanations"]
    assert (after["model_version"], after["variant"], after["degraded"]) == ("1", "fallback", True)


def test_champion_explains_during_an_experiment(folder: ServingFolder, caller: InProcess, example: Instance) -> None:
    champion, other = folder.add("1"), folder.add("2")
    folder.point(champion, challenger=Challenger(ref=other, share=1.0, salt="0" * 32, since="2013-01-01"))
    wait_for(lambda: caller.request("GET", "/readyz").status_code == httpx.codes.OK)
    told = caller.request("POST", "/explain", json={"instances": [example]}).json()
    assert (told["model_version"], told["variant"]) == ("1", "champion")


def test_explanations_beyond_the_queue_are_rejected(
    folder: ServingFolder, caller: InProcess, example: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.roll_out("1")
    wait_for(lambda: caller.request("GET", "/readyz").status_code == httpx.codes.OK)
    go, asked = threading.Event(), {"instances": [example]}
    running, most = 0, 0

    def wait_and_explain(*arguments: Any) -> Explanation:
        nonlocal running, most
        running += 1
        most = max(most, running)
        go.wait(10)
        running -= 1
        return explanation.explain(*arguments)

    monkeypatch.setattr(explaining, "explain", wait_and_explain)
    with ThreadPoolExecutor(ROOM) as pool:
        waiting = [pool.submit(caller.request, "POST", "/explain", json=asked) for _ in range(ROOM)]
        slots = vars(vars(vars(caller.app.state.service)["explainer"])["_slots"])
        wait_for(lambda: slots["_value"] == 0)
        refused = caller.request("POST", "/explain", json=asked)
        assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert refused.json()["type"] == "urn:problem:overloaded"
        assert int(refused.headers["retry-after"]) > 0
        assert caller.request("POST", "/predict", json=asked).status_code == httpx.codes.OK
        # A large one has a thread of its own, too.
        many = caller.request("POST", "/predict", json={"instances": [example] * 200})
        assert many.status_code == httpx.codes.OK
        assert not any(one.done() for one in waiting)
        go.set()
        assert [one.result().status_code for one in waiting] == [httpx.codes.OK] * ROOM
    assert most == 1
    assert caller.request("POST", "/explain", json=asked).status_code == httpx.codes.OK


def test_explanations_do_not_delay_predictions(server: Server, client: httpx.Client, example: Instance) -> None:
    ended, told = threading.Event(), []

    def ask() -> None:
        with server.client() as own:
            while not ended.is_set():
                told.append(explain(own, example).status_code)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(ask)
        try:
            wait_for(lambda: len(told) > 2)
            seconds = []
            for _ in range(100):
                started = time.perf_counter()
                assert client.post("/predict", json={"instances": [example]}).status_code == httpx.codes.OK
                seconds.append(time.perf_counter() - started)
        finally:
            ended.set()
    assert set(told) == {httpx.codes.OK}
    assert sorted(seconds)[90] < 0.1
