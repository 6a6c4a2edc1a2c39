"""Who may ask what: API keys, compared in constant time."""

import hashlib
import hmac

from starlette.requests import Request

from ..errors import ConfigError
from ..settings import Settings
from .problems import Problem


class Guard:
    """Holds digests of the accepted keys.

    Raises:
        ConfigError: production mode without a key.
    """

    def __init__(self, settings: Settings) -> None:
        self._digests = [_digest(key.encode()) for key in settings.keys]
        self._is_production = settings.environment == "production"
        if self._is_production and not self._digests:
            raise ConfigError(
                "ML_API_KEYS is empty; production serves nothing without a key: set one, or ML_ENVIRONMENT=development"
            )

    @property
    def asks_for_key(self) -> bool:
        """Whether predictions need a key."""
        return bool(self._digests)

    def require(self, request: Request) -> None:
        """Pass a request that carries an accepted key, or any when none is set.

        Raises:
            Problem: 401.
        """
        if self._digests and not self._accepts(_presented(request)):
            raise Problem(
                401,
                "missing-or-wrong-key",
                "send an accepted key as 'X-API-Key: <key>' or 'Authorization: Bearer <key>'",
                {"WWW-Authenticate": "Bearer"},
            )

    def require_in_production(self, request: Request) -> None:
        """For what developers may see freely: docs and metrics."""
        if self._is_production:
            self.require(request)

    def _accepts(self, key: bytes) -> bool:
        digest = _digest(key)
        # Every key is compared, so that the time taken does not tell which one came close.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _presented(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    key = request.headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
    return key.encode("latin-1")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
