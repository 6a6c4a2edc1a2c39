"""API keys: how a setting or a file writes them down, and how a presented one is found among them.

A key is written in one of these forms:

    <key>                              may do everything
    sha256:<64 hex digits>             the same, by its digest
    <name>:sha256:<64 hex digits>      with a name for limits and metrics
    <name>:<scope>+<scope>:<key>       only what the scopes allow; the key itself, or its digest

Only digests are kept.
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

PREDICT, FEEDBACK, ADMIN, METRICS = "predict", "feedback", "admin", "metrics"
SCOPES = (PREDICT, FEEDBACK, ADMIN, METRICS)
SETTING, FILE = "ML_API_KEYS", "ML_API_KEYS_FILE"
HASHED = "sha256:"
MOST_BYTES = 1_000_000
"""Of a file of keys; a larger one is some other file."""

_NAMED = re.compile(rf"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{{0,31}}):(?:(?P<scopes>[a-z+]*):|(?={HASHED}))")
_DIGITS = re.compile(r"[0-9a-fA-F]{64}")


class Key(NamedTuple):
    """What is kept of a key; `name` is empty where it was given none."""

    name: str
    digest: bytes
    scopes: frozenset[str]


class Keyring:
    """The keys in force; false when there are none.

    Raises:
        ConfigError: one key is given twice with different scopes or names.
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self._secret = secrets.token_bytes(32)
        self._keys: dict[bytes, Key] = {}
        for key in keys:
            if self._keys.setdefault(self._blinded(key.digest), key) != key:
                told = f"'{key.name}'" if key.name else "without a name"
                raise ConfigError(f"{SETTING}: the key {told} is given twice with different facts; remove one of them")

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, presented: bytes) -> Key | None:
        """The key that was presented, if it is one of these, in a time that tells nothing about them."""
        digest = _digest(presented)
        # Looked up by a digest that nobody outside can compute, so the time of the search says nothing either,
        # and does not grow with the number of keys.
        key = self._keys.get(self._blinded(digest))
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None

    def _blinded(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()


def at_start(settings: Settings) -> Keyring:
    """The keys that a server begins with.

    Raises:
        ConfigError: a key is malformed, the file cannot be read, or production mode without a key in either place.
    """
    own, listed = from_setting(settings), from_file(settings)
    if settings.environment == "production":
        if settings.api_keys_file and not listed:
            raise ConfigError(f"{FILE} holds no key; production serves nothing without one: put one in, or unset it")
        if not own and not listed:
            raise ConfigError(
                f"{SETTING} is empty; production serves nothing without a key: set one, or ML_ENVIRONMENT=development"
            )
    return Keyring([*own, *listed])


def from_setting(settings: Settings) -> list[Key]:
    """The keys of `ML_API_KEYS`.

    Raises:
        ConfigError: one of them is malformed.
    """
    return [parse(text, f"{SETTING}, key {at}") for at, text in enumerate(settings.keys, 1)]


def from_file(settings: Settings) -> list[Key]:
    """The keys of `ML_API_KEYS_FILE`, one a line; empty lines and those that begin with '#' are none.

    Raises:
        ConfigError: it cannot be read, or a line is malformed.
    """
    if not settings.api_keys_file:
        return []
    try:
        with Path(settings.api_keys_file).open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        lines = content.decode().splitlines()
    except OSError as error:
        raise ConfigError(f"{FILE} cannot be read: {error.strerror}; mend it, or unset it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{FILE} is not UTF-8; write one key a line") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{FILE} has more than {MOST_BYTES} bytes; write one key a line")
    texts = [(at, line.strip()) for at, line in enumerate(lines, 1)]
    return [parse(text, f"{FILE}, line {at}") for at, text in texts if text and not text.startswith("#")]


def parse(text: str, place: str) -> Key:
    """A key as a setting or a file writes it.

    Args:
        text: in one of this module's forms.
        place: where it stands, for errors; they never repeat the text.

    Raises:
        ConfigError: it begins like a digest, or like a name with scopes, and is none.
    """
    named = None if text.startswith(HASHED) else _NAMED.match(text)
    if named is None:
        return Key("", _known(text, place), frozenset(SCOPES))
    scopes = SCOPES if named["scopes"] is None else named["scopes"].split("+")
    if not set(scopes) <= set(SCOPES):
        raise ConfigError(
            f"{place}: between a name and its key stand scopes joined by '+', of {', '.join(SCOPES)}; "
            f"write a key that has colons of its own as '{HASHED}<its digest>'"
        )
    return Key(named["name"], _known(text[named.end() :], place), frozenset(scopes))


def named(keys: Sequence[Key]) -> list[str]:
    """The names of keys, each once."""
    return sorted({key.name for key in keys if key.name})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _known(key: str, place: str) -> bytes:
    """The digest of a key, which is given itself or as `sha256:<64 hex digits>`."""
    if key.startswith(HASHED):
        digits = key.removeprefix(HASHED)
        if _DIGITS.fullmatch(digits) is None:
            raise ConfigError(f"{place}: after '{HASHED}' come the 64 hex digits of a key's digest, not {len(digits)}")
        return bytes.fromhex(digits)
    if not key or (":" in key and _DIGITS.fullmatch(key.rpartition(":")[2])):
        # Taken as it stands, it would make a key of what was meant to open nothing.
        forms = f"'<key>', '{HASHED}<digest>' or '<name>:<scope>+<scope>:{HASHED}<digest>'"
        raise ConfigError(f"{place}: a key is written as {forms}")
    return _digest(key.encode())
