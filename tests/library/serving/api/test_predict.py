"""/predict: valid and invalid requests, responses and log rows."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract, columns_from_rows
from flywheel_ml.core.parsing.rules import REQUIRED
from flywheel_ml.prediction_log import Reader
from flywheel_ml.serving.errors.problems import MEDIA_TYPE, ProblemDocument
from flywheel_ml.serving.prediction.batcher import MAX_INLINE_BODY_BYTES
from flywheel_ml.serving.prediction.pipeline import MIN_BLOCK_ROWS
from flywheel_ml.serving.schema.documents import Answers
from library.helpers.servers import Server, wait_for

Instance = dict[str, Any]
JSON = {"Content-Type": "application/json"}


def predict(client: httpx.Client, *instances: Any) -> httpx.Response:
    return client.post("/predict", json={"instances": instances})


def faults(response: httpx.Response) -> list[tuple[str | None, str]]:
    """Field and rule of each fault of a 422."""
    assert response.status_code == httpx.codes.UNPROCESSABLE_ENTITY, response.text
    problem = problem_of(response)
    return [(fault.field, fault.rule) for fault in problem.errors or []]


def problem_of(response: httpx.Response) -> ProblemDocument:
    assert response.headers["content-type"] == MEDIA_TYPE
    document = ProblemDocument.model_validate_json(response.content)
    assert document.status == response.status_code
    assert document.request_id == response.headers["x-request-id"]
    return document


class TestAnswers:
    def test_one_instance_gets_one_prediction_with_probabilities(self, client: httpx.Client, example: Instance) -> None:
        answers = Answers.model_validate_json(predict(client, example).content)
        assert len(answers.predictions) == 1
        probabilities = answers.predictions[0].probabilities
        assert probabilities is not None
        assert probabilities.keys() == {"false", "true"}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert (answers.model_version, answers.variant, answers.degraded) == ("1", "champion", False)

    def test_instances_are_answered_in_order_and_independently(
        self, client: httpx.Client, instances: list[Instance]
    ) -> None:
        together = predict(client, *instances).json()["predictions"]
        alone = [predict(client, instance).json()["predictions"][0] for instance in instances[:10]]
        assert [answer["probabilities"] for answer in together[:10]] == [answer["probabilities"] for answer in alone]
        assert len({answer["id"] for answer in together}) == len(instances)

    def test_an_absent_nullable_field_means_the_same_as_null(
        self, client: httpx.Client, example: Instance, contract: Contract
    ) -> None:
        nullable = [column.name for column in contract.inputs if column.nullable]
        absent = {name: value for name, value in example.items() if name not in nullable}
        with_null = predict(client, {**absent, **dict.fromkeys(nullable)}).json()["predictions"][0]
        assert predict(client, absent).json()["predictions"][0]["probabilities"] == with_null["probabilities"]

    def test_logged_row_equals_the_response(
        self, server: Server, client: httpx.Client, instances: list[Instance], bundle_path: Path
    ) -> None:
        bundle = Bundle.open(bundle_path)
        key = bundle.contract.id
        sent = {**instances[0], **({key.name: "42" if key.type == "string" else 42} if key else {})}
        answer = predict(client, sent).json()["predictions"][0]
        row = next(
            found.prediction for found in Reader(server.log).predictions() if found.prediction.id == answer["id"]
        )
        assert json.loads(row.inputs) == sent
        assert json.loads(row.output) == {name: answer[name] for name in ("prediction", "probabilities")}
        assert row.entity_id == ("42" if key else None)
        assert (row.variant, row.model_version, row.degraded) == ("champion", "1", False)
        assert row.score == answer["probabilities"]["true"]
        assert row.latency_us > 0
        again = bundle.predict(columns_from_rows(bundle.contract.inputs, [json.loads(row.inputs)]))
        assert np.float32(answer["probabilities"]["true"]) == again.scores[0]

    def test_rows_of_a_large_request_are_logged_as_one_block(
        self, server: Server, client: httpx.Client, instances: list[Instance], contract: Contract
    ) -> None:
        key = contract.id
        times = 1 + 2 * MAX_INLINE_BODY_BYTES // len(json.dumps(instances))
        sent = [
            {**instance, **({key.name: str(at) if key.type == "string" else at} if key else {})}
            for at, instance in enumerate(instances * times)
        ]
        answers = predict(client, *sent).json()["predictions"]
        found = {found.prediction.id: found.prediction for found in Reader(server.log).predictions()}
        for at, (row, answer) in enumerate(zip(sent, answers, strict=True)):
            logged = found[answer["id"]]
            assert json.loads(logged.inputs) == row
            assert {"id": logged.id, **json.loads(logged.output)} == answer
            assert logged.score == answer["probabilities"]["true"]
            assert logged.entity_id == (str(at) if key else None)
        assert answers[0]["probabilities"] == predict(client, instances[0]).json()["predictions"][0]["probabilities"]
        label = {"labels": [{"id": answers[-1]["id"], "label": True}]}
        assert client.post("/feedback", json=label).json() == {"accepted": 1}
        with closing(sqlite3.connect(Path(server.log) / "serve-0.db")) as log:
            assert log.execute("SELECT rows FROM blocks WHERE id = ?", [answers[0]["id"]]).fetchall() == [(len(sent),)]

    def test_a_large_request_of_few_rows_is_logged_row_by_row(
        self, server: Server, client: httpx.Client, example: Instance
    ) -> None:
        body = json.dumps({"instances": [example] * (MIN_BLOCK_ROWS - 1)}) + " " * MAX_INLINE_BODY_BYTES
        answers = client.post("/predict", content=body, headers=JSON).json()["predictions"]
        with closing(sqlite3.connect(Path(server.log) / "serve-0.db")) as log:
            alone = {name for (name,) in log.execute("SELECT id FROM predictions")}
        assert len(alone & {answer["id"] for answer in answers}) == MIN_BLOCK_ROWS - 1


class TestRefusals:
    @pytest.mark.parametrize("literal", ["absent", "null", '""', '" "', "NaN", "Infinity", "-Infinity", "1e400"])
    def test_missing_required_value_is_named(
        self, client: httpx.Client, example: Instance, contract: Contract, literal: str
    ) -> None:
        for column in contract.inputs:
            body = json.dumps({"instances": [{**example, column.name: "here"}]}).replace('"here"', literal)
            if literal == "absent":
                body = json.dumps({"instances": [{name: example[name] for name in example if name != column.name}]})
            response = client.post("/predict", content=body, headers=JSON)
            assert (
                response.status_code == httpx.codes.OK
                if column.nullable
                else faults(response) == [(column.name, REQUIRED)]
            )

    def test_value_of_a_wrong_type_is_named(self, client: httpx.Client, example: Instance) -> None:
        for name in example:
            assert [found for found, _ in faults(predict(client, {**example, name: ["no", "value"]}))] == [name]

    def test_misspelt_field_gets_a_suggestion(self, client: httpx.Client, example: Instance) -> None:
        name = max(example, key=len)
        assert faults(predict(client, {**example, f"{name}_": 1})) == [
            (f"{name}_", f"unknown field; did you mean '{name}'?")
        ]

    def test_the_target_is_not_an_input(self, client: httpx.Client, example: Instance, contract: Contract) -> None:
        name = contract.target.name
        ((found, rule),) = faults(predict(client, {**example, name: True}))
        assert found == name
        assert "send it to /feedback" in rule

    def test_each_error_names_its_instance_and_value(self, client: httpx.Client, example: Instance) -> None:
        name = next(iter(example))
        problem = problem_of(predict(client, example, {**example, name: []}, "row"))
        assert [(fault.instance, fault.field, fault.value) for fault in problem.errors or []] == [
            (1, name, "an array of 0"),
            (2, None, "row"),
        ]

    @pytest.mark.parametrize(
        ("body", "field"),
        [("[]", None), ("{}", "instances"), ('{"instances": []}', "instances"), ('{"instances": 3}', "instances")],
    )
    def test_malformed_request_is_rejected(self, client: httpx.Client, body: str, field: str | None) -> None:
        assert [name for name, _ in faults(client.post("/predict", content=body, headers=JSON))] == [field]

    @pytest.mark.parametrize("body", ["", "{", "[" * 5000, '{"instances": ["\\ud800"]}', b"\xff\xfe"])
    def test_invalid_json_gets_400(self, client: httpx.Client, body: str | bytes) -> None:
        response = client.post("/predict", content=body, headers=JSON)
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert problem_of(response).type == "urn:problem:malformed-json"

    def test_another_content_type_gets_415(self, client: httpx.Client) -> None:
        response = client.post("/predict", data={"instances": "5"})
        assert response.status_code == httpx.codes.UNSUPPORTED_MEDIA_TYPE
        assert "application/json" in problem_of(response).detail

    def test_too_many_instances_are_rejected(self, client: httpx.Client, example: Instance) -> None:
        small = {name: example[name] for name in list(example)[:1]}
        assert faults(predict(client, *[small] * 201)) == [("instances", "must have at most 200 items")]

    def test_many_errors_make_a_short_response(self, client: httpx.Client) -> None:
        response = predict(client, *[{"x" * 500: "y" * 500}] * 150)
        assert len(faults(response)) <= 20
        assert len(response.content) < 20_000

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [("GET", "/nothing", 404), ("GET", "/predict", 405), ("DELETE", "/model", 405), ("POST", "/healthz", 405)],
    )
    def test_an_unknown_path_or_method_is_a_problem_document_too(
        self, client: httpx.Client, method: str, path: str, status: int
    ) -> None:
        response = client.request(method, path)
        assert response.status_code == status
        assert problem_of(response).instance == path


@pytest.mark.parametrize("change", [{}, {"no such field": 1}, None])
def test_fast_path_and_asgi_path_answer_alike(client: httpx.Client, example: Instance, change: Instance | None) -> None:
    body = b"{" if change is None else json.dumps({"instances": [{**example, **change}]}).encode()
    headers = {**JSON, "X-Request-ID": "same"}
    # A body of declared length goes straight from the parser into a batch, a chunked one through the framework.
    short, long = (client.post("/predict", content=content, headers=headers) for content in (body, iter([body])))
    assert short.status_code == long.status_code
    ways = [{name for name, _ in answer.headers.items()} - {"date"} for answer in (short, long)]
    assert ways[0] == ways[1]
    assert short.headers["x-request-id"] == long.headers["x-request-id"] == "same"
    told, same = short.json(), long.json()
    for answer in (told, same):
        for prediction in answer.get("predictions", ()):
            assert len(prediction.pop("id")) == 32
    assert told == same


class TestBodyLimit:
    def test_declared_length_beyond_the_limit_is_rejected_unread(self, client: httpx.Client) -> None:
        response = client.post("/predict", content=b" " * 200_001, headers=JSON)
        assert response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
        assert "200000 bytes" in problem_of(response).detail

    def test_a_chunked_body_is_cut_off_at_the_limit(self, client: httpx.Client) -> None:
        response = client.post("/predict", content=(b" " * 10_000 for _ in range(100)), headers=JSON)
        assert response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
        assert problem_of(response).type == "urn:problem:body-too-large"

    def test_body_longer_than_declared_is_rejected(
        self, server: Server, client: httpx.Client, example: Instance
    ) -> None:
        body = json.dumps({"instances": [example]}).encode()
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        assert server.raw(head % len(body) + body + b" " * 300_000).startswith(b"HTTP/1.1 400")
        assert client.get("/healthz").status_code == httpx.codes.OK

    def test_missing_body_does_not_block_others(self, server: Server, client: httpx.Client) -> None:
        server.raw(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", read=False)
        assert client.get("/healthz").status_code == httpx.codes.OK


class TestRequestId:
    def test_valid_request_id_is_kept(self, client: httpx.Client) -> None:
        assert client.get("/healthz", headers={"X-Request-ID": "trace-1.a_B"}).headers["x-request-id"] == "trace-1.a_B"

    def test_invalid_request_id_is_replaced(self, client: httpx.Client) -> None:
        found = client.get("/healthz", headers={"X-Request-ID": 'x" injected'}).headers["x-request-id"]
        assert len(found) == 32

    def test_access_log_has_the_request_id(self, server: Server, client: httpx.Client) -> None:
        client.get("/model", headers={"X-Request-ID": "find-me"})
        wait_for(lambda: any(line.get("request_id") == "find-me" for line in server.log_lines()))
        found = next(line for line in server.log_lines() if line.get("request_id") == "find-me")
        assert (found["route"], found["status"], found["level"]) == ("/model", 200, "info")


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.dates().map(str),
    st.datetimes(timezones=st.none() | st.timezones()).map(lambda moment: moment.isoformat()),
    st.sampled_from([2**53, 1e38, 1e300]),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_instance_crashes_the_server(client: httpx.Client, example: Instance, data: st.DataObject) -> None:
    fields = st.sampled_from(sorted(example)) | st.text()
    changes = data.draw(st.lists(st.dictionaries(fields, SCALARS), min_size=1, max_size=3))
    # JSON as other languages write it, NaN included.
    body = json.dumps({"instances": [{**example, **change} for change in changes]})
    response = client.post("/predict", content=body, headers=JSON)
    if response.status_code == httpx.codes.OK:
        Answers.model_validate_json(response.content)
    else:
        assert response.status_code in {400, 422}, response.text
        problem_of(response)
