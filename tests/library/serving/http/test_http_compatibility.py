"""HTTP features that standard clients and proxies use: supported, or rejected with a valid status."""

import gzip
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.app import create_app
from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.codecs.inference_documents import BINARY
from flywheel_ml.serving.errors.problems import ProblemDocument
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.servers import InProcess, Server, connect, read_all

Instance = dict[str, Any]

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
"""What Java's HttpClient and `curl --http2` send."""
UPGRADES = {
    "h2c": H2C,
    "websocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "unknown": b"Connection: upgrade\r\nUpgrade: TLS/1.0, IRC/6.9\r\n",
    "the wish alone": b"Connection: Upgrade\r\n",
    "the name alone": b"Upgrade: h2c\r\n",
}


def body_of(instance: Instance) -> bytes:
    return json.dumps({"instances": [instance]}).encode()


def post(body: bytes, headers: bytes = b"", target: bytes = b"/predict", coded: bytes = b"") -> bytes:
    length = coded or b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\nHost: here\r\n%b%b\r\n%b" % (target, headers, length, body)


def chunked(body: bytes, trailers: bytes = b"") -> bytes:
    return b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)


def exchange(server: Server, *parts: bytes) -> bytes:
    """What is answered to parts that are sent one by one, and a last request that ends the connection."""
    with connect(server) as connection:
        for part in (*parts, b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"):
            connection.sendall(part)
        return read_all(connection)


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_unsupported_upgrade_is_ignored(server: Server, example: Instance, upgrade: str) -> None:
    body = body_of(example)
    once = post(body, UPGRADES[upgrade])
    head, body_alone = once[: -len(body)], once[-len(body) :]
    in_chunks = post(chunked(body), UPGRADES[upgrade], coded=b"Transfer-Encoding: chunked\r\n")
    for parts, answers in (([once], 1), ([head[:30], head[30:], body_alone], 1), ([once * 3], 3), ([in_chunks], 1)):
        told = exchange(server, *parts)
        assert told.count(b"HTTP/1.1 200 OK") == answers + 1, told
        assert told.count(b'"predictions"') == answers
    assert not [line for line in server.log_lines() if "pgrade" in line["event"]]


def test_repeated_upgrades_are_answered_one_by_one(server: Server) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: here\r\n%b\r\n" % H2C
    assert exchange(server, asked * 40).count(b'"alive"') == 41


def test_connect_method_is_rejected(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"CONNECT there:443 HTTP/1.1\r\nHost: there\r\n\r\nhello")
        connection.settimeout(5)
        assert connection.recv(4096)[:10] == b"HTTP/1.1 4"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_with_http_2_gets_an_answer(server: Server, example: Instance) -> None:
    command = ["curl", "--http2", "-sS", "--noproxy", "*", "-H", "Content-Type: application/json", "-d", "@-"]
    asked = subprocess.run([*command, f"{server.url}/predict"], input=body_of(example), capture_output=True, check=True)
    assert "predictions" in json.loads(asked.stdout)


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.*;
class Ask {
    public static void main(String[] given) throws Exception {
        var body = HttpRequest.BodyPublishers.ofFile(Path.of(given[1]));
        var asked = HttpRequest.newBuilder(URI.create(given[0])).header("Content-Type", "application/json").POST(body);
        var client = HttpClient.newHttpClient();
        var handler = HttpResponse.BodyHandlers.ofString();
        for (int at = 0; at < 2; at++) System.out.println(client.send(asked.build(), handler).statusCode());
    }
}
"""


@pytest.mark.chaos
@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_java_client_gets_an_answer(server: Server, example: Instance, tmp_path: Path) -> None:
    (tmp_path / "Ask.java").write_text(JAVA)
    (tmp_path / "body.json").write_bytes(body_of(example))
    command = ["java", str(tmp_path / "Ask.java"), f"{server.url}/predict", str(tmp_path / "body.json")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["200", "200"]


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/ping", "/model", "/metrics", "/docs", "/openapi.json", "/v2/health/ready"]
)
def test_head_is_answered_as_get_without_the_body(client: httpx.Client, path: str) -> None:
    got, asked = client.get(path), client.head(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # Which counts this.
        assert asked.headers["content-length"] == str(len(got.content))
    # The connection goes on.
    assert client.get("/healthz").json() == {"status": "alive"}


def test_head_of_a_post_route_is_rejected(client: httpx.Client) -> None:
    refused = client.head("/predict")
    assert (refused.status_code, refused.headers["allow"], refused.content) == (405, "POST", b"")
    assert client.post("/healthz").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "aes128gcm"])
def test_encoded_body_is_rejected_on_every_route(client: httpx.Client, example: Instance, coding: str) -> None:
    name = client.get("/model").json()["name"]
    infer = f"/v2/models/{name}/infer"
    content = gzip.compress(body_of(example))
    for path, kind in (
        ("/predict", "application/json"),
        ("/predict", ARROW),
        ("/explain", "application/json"),
        ("/feedback", "application/json"),
        ("/invocations", "application/json"),
        ("/invocations", "text/csv"),
        (infer, "application/json"),
        (infer, BINARY),
        (f"/v2/models/{name}/versions/1/infer", "application/json"),
    ):
        refused = client.post(path, content=content, headers={"Content-Encoding": coding, "Content-Type": kind})
        assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "identity"), path
        problem = ProblemDocument.model_validate_json(refused.content)
        assert problem.type == "urn:problem:unsupported-content-encoding"
        assert coding.rpartition(" ")[2] in problem.detail


def test_a_body_that_is_not_encoded_may_say_so(client: httpx.Client, example: Instance) -> None:
    headers = {"Content-Encoding": "identity", "Content-Type": "application/json"}
    assert client.post("/predict", content=body_of(example), headers=headers).status_code == httpx.codes.OK


@pytest.mark.parametrize(
    "sent", [b"post /predict HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_malformed_http_gets_a_problem_document(server: Server, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert ProblemDocument.model_validate_json(body).type == "urn:problem:malformed-request"


def test_trailers_do_not_become_headers(server: Server, example: Instance) -> None:
    trailers = b"Content-Type: text/plain\r\nContent-Encoding: gzip\r\nX-Request-Id: from-a-trailer\r\n"
    body = chunked(body_of(example), trailers)
    told = exchange(server, post(body, b"X-Request-Id: mine\r\n", coded=b"Transfer-Encoding: chunked\r\n"))
    assert told.startswith(b"HTTP/1.1 200 OK")
    assert b"x-request-id: mine" in told
    assert b"from-a-trailer" not in told


def test_a_target_in_absolute_form_is_answered(server: Server, example: Instance) -> None:
    told = exchange(server, post(body_of(example), target=b"http://elsewhere:1234/predict"))
    assert told.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("host", [b"evil.example", b"[", b"a/b?c#d", b"user@evil:99999", b"", b"\xff"])
def test_host_header_has_no_effect(server: Server, host: bytes) -> None:
    for path in (b"/nowhere", b"/nowhere/", b"/healthz/", b"/predict"):
        with connect(server) as connection:
            connection.sendall(
                b"GET %b HTTP/1.1\r\nHost: %b\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n" % (path, host)
            )
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert b"evil" not in head + body
        assert b"location" not in head.lower()
        status = int(head.split()[1])
        assert status == (200 if path == b"/healthz/" else 405 if path == b"/predict" else 404)
        if status != 200:
            assert json.loads(body)["instance"] == path.decode().rstrip("/")


def test_trailing_slash_is_ignored(client: httpx.Client, example: Instance) -> None:
    model = client.get("/model/").json()
    assert model["version"] == "1"
    for path in ("/predict/", "/invocations/"):
        asked = client.post(path, json={"instances": [example]})
        assert (asked.status_code, asked.history) == (200, [])
    assert client.get(f"/v2/models/{model['name']}/").status_code == httpx.codes.OK
    assert client.get("/predict//").status_code == httpx.codes.NOT_FOUND
    page = client.get("/docs/")
    assert 'href="../docs/swagger-ui.css"' in page.text
    assert "'../openapi.json'" in page.text


@contextmanager
def stripping_proxy(server: Server, prefix: str) -> Iterator[str]:
    """A proxy that publishes a server under a prefix, which it takes away; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on(b"")

        def do_POST(self) -> None:
            self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

        def _pass_on(self, body: bytes) -> None:
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            with server.client() as client:
                answer = client.request(self.command, self.path.removeprefix(prefix), content=body, headers=kind)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-length", "location"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()
            thread.join()


@pytest.mark.parametrize("ending", ["", "/"])
def test_docs_work_behind_a_proxy_that_strips_a_prefix(server: Server, ending: str) -> None:
    with stripping_proxy(server, "/models/flights") as address, httpx.Client(trust_env=False) as client:
        page = client.get(f"{address}/models/flights/docs{ending}")
        (described,) = [word for word in page.text.split("'") if word.endswith("openapi.json")]
        assert client.get(page.url.join("docs/favicon.png" if not ending else "../docs/favicon.png")).status_code == 200
        where = page.url.join(described)
        document = client.get(where).json()
        (base,) = [where.join(one["url"]) for one in document["servers"]]
        example = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        answer = client.post(str(base).rstrip("/") + "/predict", json=example["examples"][0])
        assert answer.json()["model_version"] == "1"


def test_root_path_is_described_and_accepted(folder: ServingFolder, tmp_path: Path) -> None:
    folder.roll_out("1")
    log = str(tmp_path / "log")
    settings = Settings(_env_file=None, serving_folder=folder.path, prediction_log=log, root_path="/models/flights")
    with InProcess(create_app(settings)) as caller:
        for prefix in ("", "/models/flights"):
            description = caller.request("GET", f"{prefix}/openapi.json").json()
            assert description["servers"] == [{"url": "/models/flights"}]
            taken = description["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
            answer = caller.request("POST", f"{prefix}/predict", json=taken["examples"][0])
            assert answer.status_code == httpx.codes.OK
        assert caller.request("GET", "/models/flightsx/model").status_code == httpx.codes.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "is_there", "workers"),
    [
        ("PROMETHEUS_MULTIPROC_DIR", False, "1"),
        pytest.param("PROMETHEUS_MULTIPROC_DIR", True, "1", marks=pytest.mark.chaos),
        pytest.param("prometheus_multiproc_dir", True, "1", marks=pytest.mark.chaos),
        pytest.param("prometheus_multiproc_dir", False, "2", marks=pytest.mark.chaos),
        pytest.param("PROMETHEUS_MULTIPROC_DIR", True, "2", marks=pytest.mark.chaos),
    ],
)
def test_inherited_metrics_folder_is_not_used(
    folder: ServingFolder, tmp_path: Path, example: Instance, name: str, is_there: bool, workers: str
) -> None:
    folder.roll_out("1")
    inherited = tmp_path / "inherited"
    if is_there:
        inherited.mkdir()
    with Server(tmp_path, "--workers", workers, **{name: str(inherited)}) as server, server.client() as client:
        assert client.post("/predict", json={"instances": [example]}).status_code == httpx.codes.OK
        assert 'route="/predict"' in client.get("/metrics").text
    assert list(inherited.glob("*")) == []
    assert inherited.exists() == is_there
