"""Posting JSON: what is retried, and that no error shows the address."""

import base64
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from flywheel_ml.monitoring.alerting.sinks import SinkError
from flywheel_ml.monitoring.alerting.webhooks import Address, post_json
from flywheel_ml.utils.errors import ConfigError
from library.helpers.sinks import Hook


def post(url: str, timeout: float = 2.0) -> SinkError:
    """Post, and return the error."""
    with pytest.raises(SinkError) as error:
        post_json(Address(url, "ML_ALERT_WEBHOOK"), {}, timeout)
    assert "T0KEN" not in str(error.value)
    assert "127.0.0.1" not in str(error.value)
    return error.value


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_content_is_posted_as_json(hook: Hook) -> None:
    post_json(Address(hook.url, "ML_ALERT_WEBHOOK"), {"text": "Zürich “quoted”\nline"}, 2)
    ((path, headers, content),) = hook.requests
    assert (path, headers["Content-Type"]) == ("/T0KEN", "application/json")
    assert content == {"text": "Zürich “quoted”\nline"}


@pytest.mark.parametrize(("status", "permanent"), [(400, True), (404, True), (408, False), (429, False), (500, False)])
def test_rejection_is_permanent_for_client_errors(hook: Hook, status: int, permanent: bool) -> None:
    hook.status = status
    error = post(hook.url)
    assert (str(error), error.permanent) == (f"answered {status}", permanent)
    assert error.unreadable == (status == 400)


def test_retry_after_is_read_as_seconds_or_date(hook: Hook) -> None:
    hook.status, hook.headers = 429, {"Retry-After": "7"}
    assert post(hook.url).retry_after == 7
    hook.headers = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)}
    assert 80 < post(hook.url).retry_after <= 100


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e9", "٣", "Mon, 99 Foo 2020"])
def test_invalid_retry_after_is_ignored(hook: Hook, text: str) -> None:
    hook.status = 503
    hook.headers = {"Retry-After": text} if text.isascii() else {}
    assert post(hook.url).retry_after == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(hook: Hook, status: int) -> None:
    hook.status, hook.headers = status, {"Location": hook.url}
    error = post(hook.url)
    assert error.permanent
    assert "redirect" in str(error)
    assert len(hook.requests) == 1


def test_unreachable_host_is_named_without_its_address() -> None:
    assert str(post("http://127.0.0.1:9/T0KEN")) == "is unreachable (Connection refused)"


def test_server_that_never_answers_times_out(listener: socket.socket) -> None:
    error = post(f"http://127.0.0.1:{listener.getsockname()[1]}/T0KEN", timeout=0.2)
    assert str(error) == "did not answer within 0.2 s"
    assert not error.permanent


@pytest.mark.parametrize("answer", [b"", b"T0KEN T0KEN\r\n\r\n", b"HTTP/1.1 T0KEN\r\n\r\n", b"\x16\x03\x01"])
def test_answer_that_is_not_http_is_an_error(listener: socket.socket, answer: bytes) -> None:
    def reply() -> None:
        connection, _ = listener.accept()
        with connection:
            request = b""
            while not request.endswith(b"{}"):  # Closing with unread bytes would reset the connection.
                request += connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=reply)
    thread.start()
    assert "did not answer as a web server" in str(post(f"http://127.0.0.1:{listener.getsockname()[1]}/T0KEN"))
    thread.join()


def test_password_in_the_address_becomes_a_header(hook: Hook) -> None:
    url = hook.url.replace("//", "//user:p%40ss@")
    post_json(Address(url, "ML_ALERT_WEBHOOK"), {}, 2)
    assert hook.requests[0][1]["Authorization"] == f"Basic {base64.b64encode(b'user:p@ss').decode()}"


@pytest.mark.parametrize(
    "url",
    ["file:///etc/T0KEN", "ftp://host/T0KEN", "T0KEN", "http://", "http://a b/T0KEN", "http://[T0KEN", "http://h:x/"],
)
def test_address_that_is_not_http_is_rejected_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="ML_ALERT_WEBHOOK: the address must start with http") as error:
        Address(url, "ML_ALERT_WEBHOOK")
    assert "T0KEN" not in str(error.value)
