"""API keys: parses them from a setting or a file, and looks up the key of a request.

A key is written in one of these forms:

    <key>                              all scopes but `log`
    sha256:<64 hex digits>             the same; the digest of the key
    <name>:sha256:<64 hex digits>      with a name for limits and metrics
    <name>:<scope>+<scope>:<key>       only these scopes; the key or its digest

Only digests are kept in memory.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from flywheel_ml.core.settings import Settings
from flywheel_ml.utils.errors import ConfigError

PREDICT, FEEDBACK, ADMIN, METRICS, LOG = "predict", "feedback", "admin", "metrics", "log"
DEFAULT_SCOPES = (PREDICT, FEEDBACK, ADMIN, METRICS)
SCOPES = (*DEFAULT_SCOPES, LOG)
"""`log` deletes and exports predictions, so only keys that name it have it."""
SETTING, FILE = "ML_API_KEYS", "ML_API_KEYS_FILE"
HASHED = "sha256:"
MAX_BYTES = 1_000_000
"""Maximum size of a key file; a larger one is probably another file."""

_NAMED = re.compile(rf"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{{0,31}}):(?:(?P<scopes>[a-z+]*):|(?={HASHED}))")
_DIGITS = re.compile(r"[0-9a-fA-F]{64}")


class Key(NamedTuple):
    """A key as it is kept in memory; `name` is empty for a key without a name."""

    name: str
    digest: bytes
    scopes: frozenset[str]


class Keyring:
    """The active keys; falsy if there are none.

    Raises:
        ConfigError: a key occurs twice with different scopes or names.
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self._secret = secrets.token_bytes(32)
        self._keys: dict[bytes, Key] = {}
        for key in keys:
            if self._keys.setdefault(self._keyed_hash(key.digest), key) != key:
                label = f"'{key.name}'" if key.name else "without a name"
                raise ConfigError(
                    f"{SETTING}: the key {label} occurs twice with different names or scopes; remove one of them"
                )

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, presented: bytes) -> Key | None:
        """Return the active key that was presented, or None; the time taken reveals nothing about the keys."""
        digest = _hash_key(presented)
        # The lookup uses a digest that callers cannot compute, so its time reveals nothing.
        # It does not grow with the number of keys either.
        key = self._keys.get(self._keyed_hash(digest))
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None

    def _keyed_hash(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()


def load_keys(settings: Settings) -> Keyring:
    """Load the keys at start, from the setting and from the file.

    Raises:
        ConfigError: a key is malformed, the file cannot be read, or production mode has no key in either place.
    """
    own, listed = parse_setting(settings), read_file(settings)
    if settings.environment == "production":
        if settings.api_keys_file and not listed:
            raise ConfigError(f"{FILE} contains no key, which production requires; add a key to the file, or unset it")
        if not own and not listed:
            raise ConfigError(
                f"{SETTING} is empty, but production requires a key; set a key, or ML_ENVIRONMENT=development"
            )
    return Keyring([*own, *listed])


def parse_setting(settings: Settings) -> list[Key]:
    """Parse the keys of `ML_API_KEYS`.

    Raises:
        ConfigError: a key is malformed.
    """
    return [parse_key(text, f"{SETTING}, key {at}") for at, text in enumerate(settings.keys, 1)]


def read_file(settings: Settings) -> list[Key]:
    """Read the keys of `ML_API_KEYS_FILE`, one per line; empty lines and lines that begin with '#' are skipped.

    Raises:
        ConfigError: the file cannot be read, or a line is malformed.
    """
    if not settings.api_keys_file:
        return []
    try:
        with Path(settings.api_keys_file).open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        lines = content.decode().splitlines()
    except OSError as error:
        raise ConfigError(
            f"{FILE} cannot be read: {error.strerror}; fix the path or its permissions, or unset it"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{FILE} is not UTF-8; save it as UTF-8 text with one key per line") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{FILE} has more than {MAX_BYTES} bytes; check that it names the key file")
    texts = [(at, line.strip()) for at, line in enumerate(lines, 1)]
    return [parse_key(text, f"{FILE}, line {at}") for at, text in texts if text and not text.startswith("#")]


def parse_key(text: str, place: str) -> Key:
    """Parse a key from a setting or a file.

    Args:
        text: in one of the forms above.
        place: where the text is, for errors; they never contain the text.

    Raises:
        ConfigError: the text begins like a digest or a name with scopes, but is malformed.
    """
    match = None if text.startswith(HASHED) else _NAMED.match(text)
    if match is None:
        return Key("", _to_digest(text, place), frozenset(DEFAULT_SCOPES))
    scopes = DEFAULT_SCOPES if match["scopes"] is None else match["scopes"].split("+")
    if not set(scopes) <= set(SCOPES):
        raise ConfigError(
            f"{place}: unknown scope between the name and the key; use {', '.join(SCOPES)}, joined by '+', "
            f"or write a key that contains colons as '{HASHED}<its digest>'"
        )
    return Key(match["name"], _to_digest(text[match.end() :], place), frozenset(scopes))


def list_names(keys: Sequence[Key]) -> list[str]:
    """Return the sorted, distinct names of keys."""
    return sorted({key.name for key in keys if key.name})


def _hash_key(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _to_digest(key: str, place: str) -> bytes:
    """Return the digest of a key; `key` is the key itself or `sha256:<64 hex digits>`."""
    if key.startswith(HASHED):
        digits = key.removeprefix(HASHED)
        if _DIGITS.fullmatch(digits) is None:
            raise ConfigError(f"{place}: expected 64 hex digits after '{HASHED}', found {len(digits)} characters")
        return bytes.fromhex(digits)
    if not key or (":" in key and _DIGITS.fullmatch(key.rpartition(":")[2])):
        # Accepting it would make the text itself a valid key, which nobody intended.
        forms = f"'<key>', '{HASHED}<digest>' or '<name>:<scope>+<scope>:{HASHED}<digest>'"
        raise ConfigError(f"{place}: malformed key; write it as {forms}")
    return _hash_key(key.encode())
