"""The project's own server on a free port, and a client that sends rows and labels to it."""

import http.client
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flywheel_ml.core import serving_folder
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.orchestration import engine
from flywheel_ml.utils.errors import ServingError
from flywheel_ml.utils.files import canonical_json

SUPERVISED = ("-m", "flywheel_ml.flows.orchestration.die_with_parent")
START_SECONDS, FOLLOW_SECONDS, STOP_SECONDS = 60.0, 30.0, 15.0
LABELS_PER_REQUEST = 2000
TIMEOUT_SECONDS, IDLE_SECONDS = 60, 20.0
UNPROCESSABLE = 422

Instance = dict[str, Any]


class Answered(NamedTuple):
    """The answers to some rows: position of the row → its prediction.

    Rejected rows are absent; `reason` is that of the first.
    """

    predictions: dict[int, dict[str, Any]]
    reason: str = ""


class Client:
    """Sends requests to the server, one at a time."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._used_at = time.monotonic()
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)

    def predict(self, instances: Sequence[Instance], rows_per_request: int) -> Answered:
        """Send rows to /predict; a row that the contract rejects costs no other row its answer."""
        found: dict[int, dict[str, Any]] = {}
        reason = ""
        for start in range(0, len(instances), rows_per_request):
            part = range(start, min(start + rows_per_request, len(instances)))
            reason = self._predict(instances, part, found) or reason
        return Answered(found, reason)

    def send_labels(self, labels: Sequence[tuple[str, Any]]) -> None:
        """Send labels by prediction id to /feedback."""
        for start in range(0, len(labels), LABELS_PER_REQUEST):
            part = labels[start : start + LABELS_PER_REQUEST]
            self._post("/feedback", {"labels": [{"id": name, "label": label} for name, label in part]})

    def follow(self, settings: Settings) -> None:
        """Wait until the server routes as the serving folder says.

        Raises:
            ServingError: it does not within 30 s.
        """
        end = time.monotonic() + FOLLOW_SECONDS
        while True:
            routing = serving_folder.read_routing(settings.serving_folder)
            wanted = [
                None if one is None else (one.ref.version, getattr(one, "share", None))
                for one in (routing.challenger, routing.shadow)
            ]
            _, model = self._request("GET", "/model")
            found = [
                None if one is None else (one["version"], one["share"])
                for one in (model.get("challenger"), model.get("shadow"))
            ]
            champion = routing.champion.version if routing.champion else None
            if model.get("version") == champion and found == wanted:
                return
            if time.monotonic() > end:
                raise ServingError(
                    f"the server does not follow the rollout; it answers with {canonical_json(model)[:200]}"
                )
            time.sleep(0.05)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _predict(self, instances: Sequence[Instance], part: range, found: dict[int, dict[str, Any]]) -> str:
        status, body = self._request("POST", "/predict", {"instances": [instances[at] for at in part]})
        if status == http.client.OK:
            shared = {name: body[name] for name in ("model_version", "variant")}
            for at, prediction in zip(part, body["predictions"], strict=True):
                found[at] = {**shared, **prediction}
            return ""
        if status != UNPROCESSABLE:
            raise ServingError(_describe("/predict", status, body))
        if len(part) == 1:
            first = (body.get("errors") or [{}])[0]
            return f"{first.get('field')} {first.get('rule')}"
        half = len(part) // 2
        reasons = [self._predict(instances, one, found) for one in (part[:half], part[half:])]
        return reasons[0] or reasons[1]

    def _post(self, path: str, content: Any) -> Any:
        status, body = self._request("POST", path, content)
        if status != http.client.OK:
            raise ServingError(_describe(path, status, body))
        return body

    def _request(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        text = None if content is None else json.dumps(content, allow_nan=False)
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            # The server closes connections that were idle; the next request opens another one.
            self._connection.close()
        try:
            self._connection.request(method, path, text, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            body = json.loads(response.read())
            self._used_at = time.monotonic()
            return response.status, body
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServingError(
                f"{path}: the replay's server does not answer: {error or type(error).__name__}"
            ) from None


@contextmanager
def run_server(package: str, log: Path) -> Iterator[Client]:
    """Start the command `serve` on a free port, and stop it at the end; it also ends if this process is killed.

    Args:
        package: the project's package.
        log: file for its output.

    Raises:
        ServingError: it does not start.
    """
    process = engine.spawn([*SUPERVISED, package, "serve", "--port", "0"], log, {"ML_DRAIN_SECONDS": "0"})
    with engine.stop_on_exit(process):
        client = Client(_wait_for_address(process, log))
        try:
            yield client
        finally:
            client.close()
            process.terminate()
            end = time.monotonic() + STOP_SECONDS
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)


def _wait_for_address(process: Any, log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"serving on (http://\S+)", log.read_text(encoding="utf-8", errors="replace")):
            return found[1]
        time.sleep(0.02)
    raise ServingError(f"the replay's server did not start (exit status {process.poll()}); its output is in {log}")


def _describe(path: str, status: int, body: Any) -> str:
    return f"{path}: the replay's server answered {status}: {body.get('detail', body)}"
