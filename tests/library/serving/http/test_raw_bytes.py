"""For arbitrary bytes on the socket, the server answers valid HTTP without a server error, or closes the connection."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.codecs.inference_documents import BINARY
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.protocol_clients import to_arrow_stream, to_csv
from library.helpers.servers import Server, connect

Instance = dict[str, Any]
Requests = Sequence[bytes]

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
LENGTH = re.compile(rb"^content-length: (\d+)\r$", re.MULTILINE | re.IGNORECASE)
CHUNKED, CLOSE = b"transfer-encoding: chunked", b"connection: close"
SECONDS = 8.0
"""Longest wait for a server that ends a connection after `PATIENCE` without a request, or within one."""
PATIENCE = "0.2"
WAITS = ("ML_HEADER_TIMEOUT_SECONDS", "ML_BODY_TIMEOUT_SECONDS", "ML_KEEP_ALIVE_TIMEOUT_SECONDS")

TEXTS = (
    *("null", "true", "-0", "-0.0", "1e400", "-1e400", "NaN", "Infinity", "1" * 400, "0." + "0" * 400 + "1", "1e-400"),
    *('"\\ud800"', '"\\u0000"', '"\\udc00\\ud800"', '""', '"' + "x" * 20_000 + '"', "[" * 300 + "]" * 300, "{}"),
    *('{"a":' * 300 + "1" + "}" * 300, "9007199254740993", "0x10", "01", "'x'", '"2013-13-45"', '"\\x"', "1_000"),
)
BYTES = (b"\x00", b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x7f", b"%")
HEADERS = (
    *(b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: +5"),
    *(b"Content-Length: 0", b"Content-Length: 5, 5", b"Content-Length: \xb2", b"Transfer-Encoding: chunked"),
    *(b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding : chunked"),
    *(b"Content-Encoding: gzip", b"Content-Type: \xff", b"Content-Type: text/csv", b"Content-Type:", b"Expect: x"),
    *(b"Expect: 100-continue", b"Connection: close", b"Connection: upgrade, x", b"Upgrade: websocket", b": empty"),
    *(b"Upgrade: h2c", b"Accept: \xff", b"X-Request-Id: \xe9\x00", b"X-Routing-Key: \xff\xfe", b"X-Variant: \xff"),
    *(b"Inference-Header-Content-Length: 7", b"Inference-Header-Content-Length: \xb2", b"traceparent: 00-0-0-0"),
    *(b"Inference-Header-Content-Length: 99999999999", b"Authorization: Bearer \xff", b"X-Api-Key: \xff", b" folded"),
    *(b"X-Long: " + b"x" * 20_000, b"Host: a\x00b", b"NoColon", b"Range: bytes=0-1", b"Cookie: \xff=;;", b"Te: x"),
)
METHODS = (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"CONNECT", b"PRI", b"get", b"", b"\x00")
PATHS = (
    *(b"/", b"*", b"//predict", b"/predict/", b"/predict?a=%00", b"/%2e%2e/%2e%2e/etc/passwd", b"/docs/..%2f..%2fx"),
    *(b"/docs/%00", b"/docs/" + b"a" * 5000, b"/v2/models/%00/infer", b"/v2/models/%ff", b"/v2/models/a%2fb/ready"),
    *(b"/v2/models/x/versions/%F0%9F", b"http://other/predict", b"/predict#x", b"/\xff", b"/predict;x", b"/docs/%ff"),
    *(b"/metrics?name[]=x", b"/openapi.json?x=" + b"y" * 3000, b"/docs/" + b"%2e" * 50, b"/docs/C:%5cx", b"/ predict"),
)


KINDS = ("cut", "flip", "put", "drop", "twice", "header", "method", "path", "length", "version", *["value"] * 6)
"""What can be done to a request; most of the others are refused before anybody looks at its values."""


class Site(NamedTuple):
    server: Server
    instance: Instance
    requests: Requests


def request(path: str, body: bytes = b"", kind: str = "application/json", method: str = "POST", *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: here", *more]
    if body:
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(whole: bytes) -> bytes:
    """The same request with a body in chunks."""
    head, _, body = whole.partition(b"\r\n\r\n")
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    parts = [body[at : at + 100] for at in range(0, len(body), 100)]
    return head + b"\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("raw")
    ServingFolder(home / "serving", bundle_path).roll_out("1")
    with Server(home, ML_MAX_BODY_BYTES="100000", **dict.fromkeys(WAITS, PATIENCE)) as server:
        with server.client() as client:
            description = client.get("/openapi.json").json()
            name = client.get("/model").json()["name"]
        examples = {
            path: json.dumps(told["post"]["requestBody"]["content"]["application/json"]["schema"]["examples"][0])
            for path, told in description["paths"].items()
            # Without keys, the routes of the log reject every request.
            if not path.startswith(("/feedback", "/log/")) and "post" in told and "requestBody" in told["post"]
        }
        instance = json.loads(examples["/predict"])["instances"][0]
        posts = [request(path.format(name=name, version="1"), body.encode()) for path, body in examples.items()]
        tensors = json.dumps(
            {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}]}
        )
        posts += [
            request("/feedback", json.dumps({"labels": [{"id": "x", "label": True, "at": "2013-01-01"}]}).encode()),
            request("/invocations", to_csv([instance]).encode(), "text/csv"),
            request("/predict", to_arrow_stream([instance]), ARROW),
            request("/predict", to_arrow_stream([instance]), ARROW, "POST", f"Accept: {ARROW}"),
            request(
                f"/v2/models/{name}/infer",
                tensors.encode() + b"12345678",
                BINARY,
                "POST",
                f"Inference-Header-Content-Length: {len(tensors)}",
            ),
        ]
        gets = [
            "/",
            "/model",
            "/metrics",
            "/docs",
            "/openapi.json",
            "/healthz",
            "/readyz",
            "/ping",
            "/v2",
            "/docs/favicon.png",
        ]
        requests = [
            *posts,
            *map(chunked, posts),
            *(request(path, method="GET") for path in (*gets, f"/v2/models/{name}")),
        ]
        yield Site(server, instance, requests)


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One thing to do to the bytes of a request."""
    where, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 40))
    kind = draw(st.sampled_from(KINDS))
    text = draw(st.sampled_from(TEXTS)).encode()
    some = draw(st.sampled_from(BYTES) | st.binary(min_size=1, max_size=8))
    header, method, path = draw(st.sampled_from(HEADERS)), draw(st.sampled_from(METHODS)), draw(st.sampled_from(PATHS))
    number = draw(st.sampled_from((-1, 0, 1, 7, 10**6, 10**20)))

    def mutate(whole: bytes) -> bytes:
        at = int(where * len(whole))
        line, _, rest = whole.partition(b" ")
        _, _, after = rest.partition(b" ")
        values = list(re.finditer(rb'(?<=[:,\[])\s*("[^"\\]*"|-?[\d.]+|true|false|null)', whole))
        value = values[int(where * len(values))].span(1) if values else (at, at)
        made: dict[str, bytes] = {
            "cut": whole[:at],
            "flip": whole[:at] + bytes([whole[at] ^ 2 ** (length % 8)]) + whole[at + 1 :] if whole else b"",
            "put": whole[:at] + some + whole[at:],
            "drop": whole[:at] + whole[at + length :],
            "twice": whole[:at] + whole[at : at + length] * 3 + whole[at + length :],
            "header": whole.replace(b"\r\n" * (1 + length % 2), b"\r\n" + header + b"\r\n" * (1 + length % 2), 1),
            "method": method + b" " + rest,
            "path": line + b" " + path + b" " + after,
            "value": with_correct_length(whole[: value[0]] + text + whole[value[1] :]),
            "length": re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % number, whole),
            "version": whole.replace(b"HTTP/1.1", b"HTTP/" + some, 1),
        }
        return made[kind]

    return mutate


def with_correct_length(whole: bytes) -> bytes:
    """The same request with the length that its body has."""
    head, end, body = whole.partition(b"\r\n\r\n")
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + end + body


def said(server: Server, sent: bytes, parts: int = 1) -> bytes:
    """All that comes back until the server hangs up, which it has to do in the end, whatever it was sent."""
    found = b""
    with connect(server) as connection:
        connection.settimeout(SECONDS)
        try:
            size = max(1, -(-len(sent) // parts))
            for at in range(0, len(sent), size):
                connection.sendall(sent[at : at + size])
            while part := connection.recv(65536):
                found += part
        except ConnectionError:
            pass  # It did, before all was sent or read.
    return found


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes

    @property
    def is_sound(self) -> bool:
        """Whether the response is not a server error; 503 is allowed with a `Retry-After`."""
        full = self.status == 503 and b"retry-after: " in self.head.lower() and b"urn:problem:overloaded" in self.body
        return self.status < 500 or full


def answers(told: bytes, to_head: bool) -> Iterator[Answer]:
    """One after the other; fails where they are not well-formed. The last may have been cut off with the connection."""
    while told:
        match = STATUS.match(told)
        assert match, told[:200]
        head, end, rest = told.partition(b"\r\n\r\n")
        assert end, told[:200]
        length = LENGTH.search(head + b"\r")
        assert length or int(match[1]) == 100 or CHUNKED in head.lower() or CLOSE in head.lower(), head
        size = 0 if int(match[1]) == 100 else int(length[1]) if length else len(rest)
        if to_head and (rest.startswith(b"HTTP/1.1 ") or not rest):
            size = 0
        yield Answer(int(match[1]), head, rest[:size])
        told = rest[size:]


def attack(site: Site, examples: int) -> None:
    before, seen = request_prediction(site), Counter[int]()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(st.sampled_from(site.requests), min_size=1, max_size=3),
        st.lists(mutations(), min_size=1, max_size=3),
        st.integers(1, 3),
    )
    def probe(requests: list[bytes], changes: list[Callable[[bytes], bytes]], parts: int) -> None:
        first, *others = [*requests[:-1], requests[-1].replace(b"Host: here", b"Host: here\r\nConnection: close")]
        for change in changes:
            first = change(first)
        sent = b"".join([first, *others])
        told = list(answers(said(site.server, sent, parts), to_head=b"HEAD" in sent))
        assert [answer for answer in told if not answer.is_sound] == [], sent
        seen.update(answer.status for answer in told)

    probe()
    # It got through to every kind of answer, and not only to refusals.
    assert seen.keys() >= {200, 400, 404, 405, 422}, seen
    with site.server.client() as client:
        assert client.get("/healthz").status_code == 200
    assert request_prediction(site) == before
    assert [line for line in site.server.log_lines() if line["level"] not in ("info", "warning")] == []


def request_prediction(site: Site) -> dict[str, Any]:
    """Return the response to a valid request, without the id of the prediction."""
    with site.server.client() as client:
        found: dict[str, Any] = client.post("/predict", json={"instances": [site.instance]}).json()
    del found["predictions"][0]["id"]
    return found


def test_no_bytes_break_the_server(site: Site) -> None:
    attack(site, 120)


@pytest.mark.chaos
@pytest.mark.full
def test_no_bytes_of_a_long_attack_break_the_server(site: Site) -> None:
    attack(site, 800)
