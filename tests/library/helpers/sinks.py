"""Receivers of alerts: a web server and a mail server on free ports, and alerts to send them."""

import json
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flywheel_ml.monitoring.alerting.notification import Notification
from flywheel_ml.monitoring.alerting.rules import Alert

NOW = datetime(2020, 1, 1, 12, tzinfo=UTC)


def make_alert(rule: str = "drift", evidence: str = "changed: x", **changes: Any) -> Alert:
    """Make an alert."""
    facts: dict[str, Any] = {
        "at": NOW,
        "severity": "warning",
        "what": "the data have drifted",
        "evidence": evidence,
        "first_steps": ("Look at the plots.", "Retrain if it lasts."),
        "runbook": "docs/runbook.md#drift",
        "model": "small 7",
        "source": "prediction log",
        "rule": rule,
        "model_name": "small",
        "digest": "d" * 64,
    }
    return Alert(**{**facts, **changes})


def make_notification(alert: Alert | None = None, ended: bool = False) -> Notification:
    """Make a notification of an alert."""
    status, ended_at = ("resolved", NOW.replace(hour=13)) if ended else ("firing", None)
    return Notification.model_validate(
        {"status": status, "incident": "1", "started_at": NOW, "ended_at": ended_at, "alert": alert or make_alert()}
    )


class Hook(ThreadingHTTPServer):
    """A web server that keeps the JSON it is sent.

    Attributes:
        status: status of its answers.
        headers: headers of its answers.
        answers: statuses of its next answers, before `status` applies.
        delay: seconds before it answers.
        bodies: what it was sent and answered with a status below 300.
        requests: path, headers and content of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HookHandler)
        self.status, self.delay = 200, 0.0
        self.headers: Mapping[str, str] = {}
        self.answers: list[int] = []
        self.bodies: list[Any] = []
        self.requests: list[tuple[str, Mapping[str, str], Any]] = []

    @property
    def url(self) -> str:
        """Its address, with a secret in it."""
        return f"http://127.0.0.1:{self.server_port}/T0KEN"

    def list_statuses(self) -> list[tuple[str, str]]:
        """Return (rule, status) of every alert that it accepted."""
        return [(alert["rule"], alert["status"]) for body in self.bodies for alert in body["alerts"]]


class _HookHandler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), content))
        time.sleep(self.server.delay)
        status = self.server.answers.pop(0) if self.server.answers else self.server.status
        if status < 300:
            self.server.bodies.append(content)
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


class MailServer(socketserver.ThreadingTCPServer):
    """A mail server that keeps the messages it accepts (RFC 5321; STARTTLS by RFC 3207, AUTH PLAIN by RFC 4954).

    Args:
        context: offers STARTTLS with this certificate.
        implicit: whether connections are encrypted from the start.
        rejects: commands that it answers with a status, for example `{"RCPT": 550}`.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        context: ssl.SSLContext | None = None,
        implicit: bool = False,
        rejects: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _MailHandler)
        self.context, self.implicit, self.rejects = context, implicit, rejects or {}
        self.messages: list[EmailMessage] = []
        self.commands: list[str] = []

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.server_address[1])


class _MailHandler(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        if self.server.context and self.server.implicit:
            self._encrypt()
        self._say("220 here")
        while line := self.rfile.readline().decode().strip():
            verb = line.split()[0].upper()
            self.server.commands.append(line)
            if verb in self.server.rejects:
                self._say(f"{self.server.rejects[verb]} rejected {line}")
            elif verb == "EHLO":
                has_tls = self.server.context and not self.server.implicit
                self._say("250-here\r\n250-AUTH PLAIN" + ("\r\n250-STARTTLS" if has_tls else "") + "\r\n250 8BITMIME")
            elif verb == "STARTTLS":
                self._say("220 go")
                self._encrypt()
            elif verb == "DATA":
                self._say("354 go")
                self._read_message()
                self._say("250 kept")
            elif verb == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("235 fine" if verb == "AUTH" else "250 fine")

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def _read_message(self) -> None:
        lines = []
        while (line := self.rfile.readline()) not in {b".\r\n", b""}:
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        message = message_from_bytes(b"".join(lines), policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.server.messages.append(message)

    def _encrypt(self) -> None:
        assert self.server.context is not None
        self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@contextmanager
def serve(*servers: socketserver.BaseServer) -> Iterator[Sequence[socketserver.BaseServer]]:
    """Run servers in threads while the block runs."""
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield servers
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
