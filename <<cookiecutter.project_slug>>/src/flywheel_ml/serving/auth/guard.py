"""Authorises requests: by API key, scope and rate."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog
from starlette.requests import Request

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.auth import api_keys
from flywheel_ml.serving.auth.api_keys import ADMIN, FEEDBACK, METRICS, PREDICT, Keyring
from flywheel_ml.serving.auth.rate_limit import RateLimit
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.logs import explained
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.file_watcher import FileSignature, file_signature, poll

NEEDS = {
    "/predict": PREDICT,
    "/explain": PREDICT,
    "/invocations": PREDICT,
    "/v2": PREDICT,
    "/docs": PREDICT,
    "/openapi.json": PREDICT,
    "/feedback": FEEDBACK,
    "/model": ADMIN,
    "/metrics": METRICS,
}
"""Route → the scope that a key needs there, and below it; routes that ask for no key are not among them."""
OPEN = frozenset({"/healthz", "/readyz", "/ping", "/v2/health"})
"""Routes that ask for no key: load balancers have none."""


def needed(path: str) -> str:
    """The scope that a path needs; a path that nobody thought of needs the rarest one."""
    return NEEDS.get(path) or NEEDS.get("/" + path[1:].partition("/")[0], ADMIN)


class Guard:
    """Holds the keys in force, and follows the file that lists them.

    Args:
        settings: keys, their file, and the limit on how often each may ask.
        metrics: where refusals are counted.
        log: where changes of the file are told, never a key.

    Raises:
        ConfigError: as `api_keys.at_start`.
    """

    def __init__(self, settings: Settings, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> None:
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._is_production = settings.environment == "production"
        self._limit = RateLimit(settings.rate_limit, settings.rate_burst) if settings.rate_limit else None
        self._seen = self._stamp()
        self._refused = ""
        self._keys = api_keys.at_start(settings) or None

    async def follow(self) -> None:
        """Take up what changes in the file of keys, as long as this runs."""
        if self._settings.api_keys_file:
            await poll(self.refresh, lambda error: self._log.error("api_keys", **explained(error)))

    def refresh(self) -> None:
        """Read the file of keys if it has changed; blocking. A broken one leaves the former keys in force."""
        seen = self._stamp()
        if seen == self._seen:
            return
        refused = ""
        try:
            self._replace()
        except ConfigError as error:
            refused = str(error)
        # What changed while it was read is read again at the next look.
        self._seen = seen if seen == self._stamp() else None
        if refused and refused != self._refused:
            self._metrics.http.keys_refused.inc()
            self._log.error("api_keys_refused", reason=refused)
        self._refused = refused

    def require(self, request: Request) -> None:
        """As `authorise`, for a route of FastAPI's."""
        self.authorise(request.scope["headers"], request.scope["path"])

    def require_in_production(self, request: Request) -> None:
        """For what developers may see freely: docs and metrics."""
        if self._is_production:
            self.require(request)

    def authorise(self, headers: Iterable[tuple[bytes, bytes]], path: str) -> None:
        """Pass a request whose key is in force, has the scope that the path needs, and is within its rate.

        Without any key in force every request passes, and all of them share one rate.

        Args:
            headers: as ASGI gives them.
            path: of the request.

        Raises:
            Problem: 401, 403 or 429.
        """
        keys, limit = self._keys, self._limit
        if keys is None:
            if limit is not None:
                self._spend(limit, "", "anonymous")
            return
        scope = needed(path)
        key = keys.find(_presented(dict(headers)))
        if key is None:
            raise Problem(
                401,
                "missing-or-wrong-key",
                "send an accepted key as 'X-API-Key: <key>' or 'Authorization: Bearer <key>'",
                {"WWW-Authenticate": "Bearer"},
            )
        if scope not in key.scopes:
            raise Problem(
                403,
                "missing-scope",
                f"this key lacks the scope '{scope}'",
                {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )
        if limit is not None:
            self._spend(limit, key.name or key.digest, key.name or "unnamed")

    def _spend(self, limit: RateLimit, owner: str | bytes, label: str) -> None:
        if seconds := limit.wait(owner):
            self._metrics.http.rate_limited(label)
            raise Problem(
                429,
                "rate-limited",
                f"a key may ask {self._settings.rate_limit:g} times a second; try again after 'Retry-After' seconds",
                {"Retry-After": str(math.ceil(seconds))},
            )

    def _replace(self) -> None:
        listed = api_keys.from_file(self._settings)
        if not listed:
            raise ConfigError(f"{api_keys.FILE} holds no key; the former ones stay in force")
        self._keys = keys = Keyring([*api_keys.from_setting(self._settings), *listed])
        self._log.info("api_keys_loaded", keys=len(keys), names=api_keys.named(listed))

    def _stamp(self) -> FileSignature | None:
        path = self._settings.api_keys_file
        return file_signature(Path(path)) if path else None


def _presented(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return headers.get(b"x-api-key") or (token.strip() if scheme.lower() == b"bearer" else b"")
