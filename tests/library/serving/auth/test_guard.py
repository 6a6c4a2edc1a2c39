"""Authorisation: keys, scopes and rates on every route."""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.app import create_app
from flywheel_ml.serving.auth import guard
from flywheel_ml.serving.auth.api_keys import SCOPES
from flywheel_ml.serving.auth.guard import REQUIRED_SCOPES, find_required_scope
from flywheel_ml.serving.errors.problems import ProblemDocument
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import ConfigError
from library.helpers.servers import InProcess, Server, connect, find_workers, read_all, wait_for

V2 = "/v2/models/any"
PRIVATE = [
    *(
        ("POST", path)
        for path in ("/predict", "/explain", "/feedback", "/invocations", f"{V2}/infer", f"{V2}/versions/1/infer")
    ),
    *(("GET", path) for path in ("/model", "/v2", V2, f"{V2}/ready", f"{V2}/versions/1", f"{V2}/versions/1/ready")),
]
OPEN_ROUTES = [
    *(("GET", path) for path in ("/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready")),
    ("POST", "/ping"),
]
FOR_DEVELOPERS = [("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/docs/swagger-ui.css")]


def client(folder: ServingFolder, home: Path, **values: Any) -> InProcess:
    folder.roll_out("1")
    settings = Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(home / "log"), **values)
    return InProcess(create_app(settings))


def test_predictions_need_a_key_if_keys_are_set(folder: ServingFolder, tmp_path: Path) -> None:
    with client(folder, tmp_path, api_keys="first-key, zweiter-schlüssel") as caller:
        for method, path in PRIVATE:
            refused = caller.request(method, path)
            assert refused.status_code == 401
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.headers["www-authenticate"] == "Bearer"
            for headers in (
                {"X-API-Key": "first-key"},
                {"Authorization": "Bearer first-key"},
                {"Authorization": "bearer zweiter-schlüssel".encode()},
            ):
                assert caller.request(method, path, headers=headers).status_code != 401
            for wrong in ("first-ke", "first-key2", "first-key, zweiter", ""):
                answer = caller.request(method, path, headers={"X-API-Key": wrong})
                assert answer.status_code == 401
                assert "first-key" not in answer.text
            assert caller.request(method, path, headers={"Authorization": "Basic first-key"}).status_code == 401
        for method, path in OPEN_ROUTES + FOR_DEVELOPERS:
            assert caller.request(method, path).status_code == 200


def test_docs_and_metrics_need_a_key_in_production(folder: ServingFolder, tmp_path: Path) -> None:
    with client(folder, tmp_path, api_keys="key", environment="production") as caller:
        for method, path in FOR_DEVELOPERS:
            assert caller.request(method, path).status_code == 401
            assert caller.request(method, path, headers={"X-API-Key": "key"}).status_code == 200
        for method, path in OPEN_ROUTES:
            assert caller.request(method, path).status_code == 200


def test_development_without_keys_is_open(folder: ServingFolder, tmp_path: Path) -> None:
    with client(folder, tmp_path) as caller:
        assert caller.request("GET", "/model").status_code == 200


def test_key_may_be_stored_as_a_digest(folder: ServingFolder, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"told to nobody").hexdigest()
    with client(folder, tmp_path, api_keys=f"plain,sha256:{digest}") as caller:
        for key, status in (("told to nobody", 200), ("plain", 200), (digest, 401), (f"sha256:{digest}", 401)):
            assert caller.request("GET", "/model", headers={"X-API-Key": key}).status_code == status


def test_production_without_a_key_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ML_API_KEYS"):
        create_app(Settings(_env_file=None, environment="production", api_keys=" , "))


def test_every_route_has_a_scope_or_is_listed_as_open(folder: ServingFolder, tmp_path: Path) -> None:
    with client(folder, tmp_path) as caller:
        paths = vars(caller.app.state.service.lifecycle)["_routes"]
    assert len(paths) >= 8
    roots = REQUIRED_SCOPES.keys() | guard.OPEN_ROUTES
    assert [path for path in paths if not any(path == root or path.startswith(f"{root}/") for root in roots)] == []
    assert set(REQUIRED_SCOPES.values()) <= set(SCOPES)
    assert find_required_scope("/nobody-thought-of-it") == find_required_scope("") == "admin"


KEYS = {
    name: f"{name}-{secrets.token_hex(8)}"
    for name in (*SCOPES, "everything", "rotated", "fresh", "greedy", "modest", "audit_hook")
}
"""Name → a key that has only the scope of that name, or every scope."""


def build_key_file(*names: str) -> str:
    digests = {name: hashlib.sha256(KEYS[name].encode()).hexdigest() for name in names}
    return "".join(f"{name}:{f'{name}:' if name in SCOPES else ''}sha256:{digests[name]}\n" for name in names)


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Server]:
    """Two workers in production, with keys from a file and a limit for each."""
    home = tmp_path_factory.mktemp("keyed_server")
    ServingFolder(home / "serving", bundle_path).roll_out("1")
    (home / "keys").write_text(f"# who may come\n{build_key_file(*(KEYS.keys() - {'fresh'}))}")
    settings = {"ML_ENVIRONMENT": "production", "ML_API_KEYS_FILE": "keys"}
    with Server(home, "--workers", "2", ML_RATE_LIMIT="2", ML_RATE_BURST="40", **settings) as running:
        yield running


def ask(server: Server, name: str, method: str, path: str, **options: Any) -> httpx.Response:
    with server.client(headers={"X-API-Key": KEYS[name]}) as client:
        return client.request(method, path, **options)


@pytest.mark.parametrize("name", SCOPES)
def test_key_needs_the_scope_of_a_route(keyed_server: Server, name: str) -> None:
    with keyed_server.client(headers={"Authorization": f"Bearer {KEYS[name]}"}) as client:
        for method, path in PRIVATE + FOR_DEVELOPERS:
            answer, scope = client.request(method, path), find_required_scope(path)
            if scope == name:
                assert answer.status_code not in (401, 403)
                continue
            problem = ProblemDocument.model_validate_json(answer.content)
            assert (answer.status_code, problem.type) == (403, "urn:problem:missing-scope")
            assert f"'{scope}'" in problem.detail
            assert f'scope="{scope}"' in answer.headers["www-authenticate"]


def test_key_is_replaced_in_every_worker_without_restart(keyed_server: Server) -> None:
    def count_reloads() -> int:
        return sum(line["event"] == "api_keys_loaded" for line in keyed_server.log_lines())

    def statuses(name: str) -> set[int]:
        return {ask(keyed_server, name, "GET", "/model").status_code for _ in range(8)}

    assert statuses("fresh") == {401}
    before, path = find_workers(keyed_server), keyed_server.home / "keys"
    path.write_text("")
    wait_for(lambda: sum(line["event"] == "api_keys_rejected" for line in keyed_server.log_lines()) == 2)
    assert statuses("rotated") == {200}
    (keyed_server.home / "new").write_text(build_key_file(*(KEYS.keys() - {"rotated"})))
    (keyed_server.home / "new").replace(path)
    wait_for(lambda: count_reloads() == 2)
    assert (statuses("fresh"), statuses("rotated")) == ({200}, {401})
    assert find_workers(keyed_server) == before


def test_rate_limited_key_does_not_slow_down_others(keyed_server: Server, example: dict[str, Any]) -> None:
    body = {"instances": [example]}
    with keyed_server.client(headers={"X-API-Key": KEYS["greedy"]}) as greedy:
        answers = [greedy.post("/predict", json=body) for _ in range(60)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 40 <= len(answers) - len(refused) < 60
        modest = {"X-API-Key": KEYS["modest"]}
        assert greedy.post("/predict", json=body, headers=modest).status_code == 200
        for answer in refused:
            problem = ProblemDocument.model_validate_json(answer.content)
            assert (answer.status_code, problem.type) == (429, "urn:problem:rate-limited")
            assert answer.headers["retry-after"] == "1"
        time.sleep(1)
        assert greedy.post("/predict", json=body).status_code == 200
        text = greedy.get("/metrics", headers={"X-API-Key": KEYS["metrics"]}).text
    assert f'http_requests_rate_limited_total{{key="greedy"}} {len(refused)}.0' in text


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("nobody", "/predict", 401),
        ("metrics", "/predict", 403),
        ("metrics", "/feedback", 403),
        ("greedy", "/predict", 429),
    ],
)
def test_rejection_does_not_wait_for_the_body(
    keyed_server: Server, name: str, path: str, status: int, length: str
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEYS.get(name, name)}\r\n"
    with connect(keyed_server) as connection:
        whole = f"{head}Content-Length: 2\r\n\r\n{{}}".encode()
        for _ in range(60 if name == "greedy" else 0):
            connection.sendall(whole)
            connection.recv(4096)
        began, told = time.monotonic(), b""
        # Whatever token may have come meanwhile goes to the first of these two.
        connection.sendall(whole + f"{head}{length}\r\n\r\n".encode())
        while told.count(b"HTTP/1.1 ") < 2:
            told += connection.recv(4096)
        assert told.rpartition(b"HTTP/1.1 ")[2].startswith(str(status).encode())
        assert time.monotonic() - began < 1


def test_cross_origin_requests_are_not_allowed(keyed_server: Server) -> None:
    origin = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for method, path in PRIVATE + OPEN_ROUTES + FOR_DEVELOPERS:
        for asked in ("OPTIONS", method):
            answer = ask(keyed_server, "everything", asked, path, headers=origin)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            assert asked == method or answer.status_code == httpx.codes.METHOD_NOT_ALLOWED


def test_request_data_never_leaks(keyed_server: Server, example: dict[str, Any]) -> None:
    key = KEYS["audit_hook"]
    text = next(name for name, value in example.items() if isinstance(value, str))
    sane = json.dumps({"instances": [example]})

    def send_raw(line: str, body: str = "", *headers: str, key: str = key) -> str:
        lines = [line, "Host: x", f"X-API-Key: {key}", "Connection: close", f"Content-Length: {len(body)}", *headers]
        with connect(keyed_server) as connection:
            connection.sendall("\r\n".join([*lines, "", body]).encode())
            return read_all(connection).decode()

    post, label = "POST /predict HTTP/1.1", "POST /feedback HTTP/1.1"
    requests: list[Callable[[str], str]] = [
        lambda mark: send_raw(post, sane, key=mark),
        lambda mark: send_raw(post, sane, f"Authorization: Bearer {mark}", key=""),
        lambda mark: send_raw(f"POST /predict?token={mark} HTTP/1.1", sane),
        lambda mark: send_raw(f"GET /{mark} HTTP/1.1"),
        lambda mark: send_raw(f"GET /docs/{mark}%2f..%2f..%2fetc%2fpasswd HTTP/1.1"),
        lambda mark: send_raw(f"{mark} /predict HTTP/1.1"),
        lambda mark: send_raw(f"PUT /predict?{mark} HTTP/1.1", mark),
        lambda mark: send_raw(post, sane, f"X-{mark}: {mark}", f"X-Request-ID: {mark} {mark}", f"Cookie: {mark}"),
        lambda mark: send_raw(
            post, sane, f"traceparent: {mark}", f"tracestate: vendor={mark}", f"baggage: user={mark}"
        ),
        lambda mark: send_raw(post, sane, f"traceparent: 00-{'1' * 32}-{'2' * 16}-01", f"tracestate: vendor={mark}"),
        lambda mark: send_raw(post, sane, f"Content-Type: {mark}"),
        lambda mark: send_raw(post, f'{{"instances": [{mark}'),
        lambda mark: send_raw(post, json.dumps({"instances": [{**example, mark: 1}]})),
        lambda mark: send_raw(post, json.dumps({"instances": [{**example, text: [mark]}]})),
        lambda mark: send_raw(post, json.dumps({"instances": [{**example, text: mark}]})),
        lambda mark: send_raw(post, json.dumps({mark: mark})),
        lambda mark: send_raw(label, json.dumps({"labels": [{"id": mark, "label": True}]})),
        lambda mark: send_raw(label, json.dumps({"labels": [{"id": "0" * 32, "label": mark}]})),
        lambda mark: send_raw(post, sane, f"X-Large: {mark * 2000}"),
        lambda mark: send_raw(post, sane, f"Broken {mark}"),
        lambda mark: send_raw(post, sane),
    ]
    marks = [f"mark{secrets.token_hex(6)}" for _ in requests]
    answers = [request(mark) for request, mark in zip(requests, marks, strict=True)]
    assert {int(answer[9:12]) for answer in answers} >= {200, 400, 401, 404, 405, 415, 422, 431}
    for answer, own in zip(answers, marks, strict=True):
        assert not [mark for mark in marks if mark in answer and mark != own]
    with keyed_server.client(headers={"X-API-Key": KEYS["metrics"]}) as client:
        everywhere = [*answers, client.get("/metrics").text]
    time.sleep(0.2)  # Access log lines are buffered for 50 ms.
    assert sum(line["event"] == "request" for line in keyed_server.log_lines()) >= len(requests) - 2
    written = keyed_server.errors.read_text()
    assert not [mark for mark in marks if mark in written or mark in everywhere[-1]]
    digests = [hashlib.sha256(one.encode()).hexdigest() for one in KEYS.values()]
    private = [*KEYS.values(), *digests, str(keyed_server.home), "Traceback", 'File "', "site-packages"]
    assert not [one for one in private for text in (written, *everywhere) if one in text]
    assert not [answer for answer in answers if re.search(r"\.py\b", answer)]
