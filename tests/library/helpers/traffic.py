"""Clients that ask without a pause, over connections that they keep and over new ones."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from library.helpers.servers import Server, wait_for


class Traffic:
    """What the clients experienced.

    Attributes:
        ids: of predictions that were answered.
        failures: what was no answer with status 200.
        retried: requests sent anew because their connection, kept from an earlier answer, was closed without another.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.failures: list[str] = []
        self.retried = 0

    def sees(self, count: int) -> None:
        """Wait until that many more answers came."""
        before = len(self.ids)
        wait_for(lambda: len(self.ids) >= before + count)


class _Client:
    def __init__(self, server: Server, body: bytes, seen: Traffic, keeps: bool) -> None:
        self._address = urlsplit(server.url)
        self._body = body
        self._seen = seen
        self._keeps = keeps
        self._kept: http.client.HTTPConnection | None = None

    def ask(self) -> None:
        try:
            self._request()
        except (OSError, http.client.HTTPException) as error:
            self._seen.failures.append(repr(error))
            self.close()

    def _request(self) -> None:
        if self._kept is not None:
            try:
                self._answer(self._kept)
                return
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self._seen.retried += 1
                self.close()
        self._kept = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=10)
        self._answer(self._kept)

    def _answer(self, connection: http.client.HTTPConnection) -> None:
        connection.request("POST", "/predict", self._body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status == http.client.OK:
            self._seen.ids += [prediction["id"] for prediction in json.loads(content)["predictions"]]
        else:
            self._seen.failures.append(f"{answer.status} {content.decode()}")
        if not self._keeps or answer.will_close:
            self.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None


@contextmanager
def traffic(server: Server, instance: dict[str, Any], pause: float = 0.0) -> Iterator[Traffic]:
    """Three clients with connections that they keep and two with new ones, `pause` seconds between two requests."""
    seen, ended = Traffic(), threading.Event()
    body = json.dumps({"instances": [instance]}).encode()

    def work(keeps: bool) -> None:
        client = _Client(server, body, seen, keeps)
        while not ended.is_set():
            client.ask()
            time.sleep(pause)
        client.close()

    threads = [threading.Thread(target=work, args=(keeps,)) for keeps in (True, True, True, False, False)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join()
