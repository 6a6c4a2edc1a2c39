"""Remembers which keys were erased, so that data which bring an erased person back can be found.

Only salted hashes are kept. Whoever has the file can still test a guess, so it is as confidential as the log.
"""

import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from flywheel_ml.prediction_log.retention.requests import FOLDER
from flywheel_ml.utils.config_model import StrictModel
from flywheel_ml.utils.files import read_json, write_json

FILE = "erased.json"


class Tombstones(StrictModel):
    """Salted hashes of erased keys."""

    salt: str
    keys: tuple[str, ...] = Field(default=())

    def hash_key(self, key: str) -> str:
        """blake2b of a key with this salt (RFC 7693)."""
        return hashlib.blake2b(key.encode(), digest_size=16, salt=bytes.fromhex(self.salt)).hexdigest()

    def count(self, keys: Iterable[str]) -> int:
        """Count how many of some keys were erased."""
        erased = frozenset(self.keys)
        return sum(self.hash_key(key) in erased for key in keys) if erased else 0


def read(folder: Path) -> Tombstones:
    """Read the tombstones of a log; `folder` is that of its jobs.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return Tombstones.model_validate(read_json(folder / FOLDER / FILE), strict=False)
    except FileNotFoundError:
        return Tombstones(salt=secrets.token_hex(8))


def add(folder: Path, key: str) -> None:
    """Remember an erased key; call it only while holding the lock of jobs."""
    known = read(folder)
    keys = tuple(sorted({*known.keys, known.hash_key(key)}))
    write_json(folder / FOLDER / FILE, known.model_copy(update={"keys": keys}).model_dump(mode="json"))
