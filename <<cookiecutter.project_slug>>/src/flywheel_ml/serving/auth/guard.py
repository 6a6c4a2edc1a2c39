"""Authorises requests by API key, scope and rate."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog
from starlette.requests import Request

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.auth import api_keys
from flywheel_ml.serving.auth.api_keys import ADMIN, FEEDBACK, LOG, METRICS, PREDICT, Keyring
from flywheel_ml.serving.auth.rate_limit import RateLimit
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.logs import describe_error
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.file_watcher import FileSignature, file_signature, poll

REQUIRED_SCOPES = {
    "/predict": PREDICT,
    "/explain": PREDICT,
    "/invocations": PREDICT,
    "/v2": PREDICT,
    "/docs": PREDICT,
    "/openapi.json": PREDICT,
    "/feedback": FEEDBACK,
    "/model": ADMIN,
    "/metrics": METRICS,
    "/log": LOG,
}
"""Route → the scope that a key needs for it and for the paths below it; open routes are not listed."""
OPEN_ROUTES = frozenset({"/healthz", "/readyz", "/ping", "/v2/health"})
"""Routes that need no key, because load balancers have none."""


def find_required_scope(path: str) -> str:
    """Return the scope that a path needs; unknown paths need `admin`."""
    return REQUIRED_SCOPES.get(path) or REQUIRED_SCOPES.get("/" + path[1:].partition("/")[0], ADMIN)


class Guard:
    """Holds the active keys, and reloads the file that lists them when it changes.

    Args:
        settings: keys, their file, and the rate limit.
        metrics: counts rejected files and rate-limited requests.
        log: receives changes of the file, never a key.

    Raises:
        ConfigError: as `api_keys.load_keys`.
    """

    def __init__(self, settings: Settings, metrics: Metrics, log: structlog.typing.FilteringBoundLogger) -> None:
        self._settings = settings
        self._metrics = metrics
        self._log = log
        self._is_production = settings.environment == "production"
        self._limit = RateLimit(settings.rate_limit, settings.rate_burst) if settings.rate_limit else None
        self._last_signature = self._read_signature()
        self._rejected_reason = ""
        self._keys = api_keys.load_keys(settings) or None

    async def poll(self) -> None:
        """Reload the key file whenever it changes, for ever."""
        if self._settings.api_keys_file:
            await poll(self.refresh, lambda error: self._log.error("api_keys", **describe_error(error)))

    def refresh(self) -> None:
        """Read the key file if it has changed; blocking. If it is invalid, the former keys stay active."""
        signature = self._read_signature()
        if signature == self._last_signature:
            return
        rejected_reason = ""
        try:
            self._reload_keys()
        except ConfigError as error:
            rejected_reason = str(error)
        # A change during the read is read at the next poll.
        self._last_signature = signature if signature == self._read_signature() else None
        if rejected_reason and rejected_reason != self._rejected_reason:
            self._metrics.http.key_files_rejected.inc()
            self._log.error("api_keys_rejected", reason=rejected_reason)
        self._rejected_reason = rejected_reason

    def require(self, request: Request) -> None:
        """Dependency of FastAPI routes; see `authorise`."""
        self.authorise(request.scope["headers"], request.scope["path"])

    def require_in_production(self, request: Request) -> None:
        """Dependency of docs and metrics, which need no key in development."""
        if self._is_production:
            self.require(request)

    def authorise(self, headers: Iterable[tuple[bytes, bytes]], path: str) -> None:
        """Return if the request's key is active, has the scope that the path needs, and is within its rate.

        If no key is configured, every request passes and all of them share one rate limit; only the scope `log`
        always needs a key.

        Args:
            headers: as ASGI gives them.
            path: of the request.

        Raises:
            Problem: 401, 403 or 429.
        """
        keys, limit = self._keys, self._limit
        if keys is None:
            if find_required_scope(path) == LOG:
                raise Problem(
                    403, "missing-scope", f"this needs a key with the scope '{LOG}', and the server has no keys"
                )
            if limit is not None:
                self._enforce_rate_limit(limit, "", "anonymous")
            return
        scope = find_required_scope(path)
        key = keys.find(_extract_key(dict(headers)))
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
            self._enforce_rate_limit(limit, key.name or key.digest, key.name or "unnamed")

    def _enforce_rate_limit(self, limit: RateLimit, owner: str | bytes, label: str) -> None:
        if seconds := limit.take_token(owner):
            self._metrics.http.count_rate_limited(label)
            raise Problem(
                429,
                "rate-limited",
                f"the limit is {self._settings.rate_limit:g} requests a second; try again after 'Retry-After' seconds",
                {"Retry-After": str(math.ceil(seconds))},
            )

    def _reload_keys(self) -> None:
        listed = api_keys.read_file(self._settings)
        if not listed:
            raise ConfigError(f"{api_keys.FILE} contains no key; the former keys stay active until it has one")
        self._keys = keys = Keyring([*api_keys.parse_setting(self._settings), *listed])
        self._log.info("api_keys_loaded", keys=len(keys), names=api_keys.list_names(listed))

    def _read_signature(self) -> FileSignature | None:
        path = self._settings.api_keys_file
        return file_signature(Path(path)) if path else None


def _extract_key(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return headers.get(b"x-api-key") or (token.strip() if scheme.lower() == b"bearer" else b"")
