"""Who may ask what: API keys, compared in constant time."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

from starlette.requests import Request

from ..errors import ConfigError
from ..settings import Settings
from .problems import Problem

HASHED = "sha256:"


class Guard:
    """Holds digests of the accepted keys.

    Raises:
        ConfigError: production mode without a key, or a malformed digest.
    """

    def __init__(self, settings: Settings) -> None:
        self._digests = [_known(key) for key in settings.keys]
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
        """Pass a request that carries an accepted key, or any when none is set; raises as `admit`."""
        self.admit(request.scope["headers"])

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Like `require`, for a request's headers as ASGI gives them.

        Raises:
            Problem: 401.
        """
        if self._digests and not self._accepts(_presented(dict(headers))):
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


def _presented(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return headers.get(b"x-api-key") or (token.strip() if scheme.lower() == b"bearer" else b"")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _known(key: str) -> bytes:
    """The digest of a key, which the setting gives itself or as `sha256:<64 hex digits>`.

    Raises:
        ConfigError: it begins like a digest and is none.
    """
    if not key.startswith(HASHED):
        return _digest(key.encode())
    digits = key.removeprefix(HASHED)
    if re.fullmatch(r"[0-9a-fA-F]{64}", digits) is None:
        raise ConfigError(f"ML_API_KEYS: after '{HASHED}' come the 64 hex digits of a key's digest, not {len(digits)}")
    return bytes.fromhex(digits)
