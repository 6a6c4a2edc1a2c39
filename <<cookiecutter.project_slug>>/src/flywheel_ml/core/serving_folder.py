"""The serving folder: the bundle that serves predictions, and its challengers or shadow.

    routing.json                      the `Routing`; replaced atomically
    bundles/<version>-<digest>/       one bundle each
    monitoring.prom, alerts.prom      metrics that servers add to their own

`rollout` and `monitor` write the folder, servers only read it.
"""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from flywheel_ml.core.bundle import MANIFEST
from flywheel_ml.core.contract import Contract
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ServingError
from flywheel_ml.utils.files import read_json, sha256_file, write_json
from flywheel_ml.utils.formatting import short_digest

ROUTING, BUNDLES = "routing.json", "bundles"
MONITORING_METRICS, ALERT_METRICS = "monitoring.prom", "alerts.prom"
HASHES = 2**64
SHARE_TOLERANCE = 1e-9
"""By how much shares may add up to more than 1, because 0.1 + 0.2 + 0.7 does."""


class BundleRef(config_model.StrictModel):
    """One bundle: its version in the registry, and the sha256 of its manifest, which no other bundle has."""

    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class Challenger(config_model.StrictModel):
    """A bundle that serves a share in (0, 1] of the keys; `salt` selects them and identifies the experiment."""

    ref: BundleRef
    share: float = Field(gt=0, le=1)
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    since: str

    def is_assigned(self, key: bytes) -> bool:
        """Whether it serves a key if it is the only challenger."""
        return KeySplit((self,)).find(key) == 0


class KeySplit:
    """Divides keys among the challengers of one experiment, on every machine alike; the champion has the rest.

    A key's salted blake2b hash (RFC 7693) is its place between 0 and 1. The places are divided in proportion to the
    shares, and each challenger has the first part of its division. So if all shares grow alike, each challenger keeps
    its keys.

    Args:
        challengers: at least one; they have the same salt, and their shares add up to 1 at most.
    """

    def __init__(self, challengers: Sequence[Challenger]) -> None:
        shares = [one.share for one in challengers]
        total = math.fsum(shares)
        starts = [start / total for start in accumulate(shares[:-1], initial=0.0)]
        self._salt = bytes.fromhex(challengers[0].salt)
        self._parts = [(start * HASHES, (start + share) * HASHES) for start, share in zip(starts, shares, strict=True)]

    def find(self, key: bytes) -> int | None:
        """Return the position of the challenger that serves a key; None if the champion does."""
        place = int.from_bytes(blake2b(key, digest_size=8, salt=self._salt).digest())
        for at, (low, high) in enumerate(self._parts):
            if low <= place < high:
                return at
        return None


class Shadow(config_model.StrictModel):
    """A bundle whose predictions are logged but never returned; `salt` identifies the experiment."""

    ref: BundleRef
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    since: str


class Change(config_model.StrictModel):
    """Audit record of a routing change: `who` replaced version `before` by `after` in the role `what`."""

    who: str
    what: str
    before: str | None
    after: str | None


class Routing(config_model.StrictModel):
    """The whole of routing.json."""

    format: Literal[3] = 3
    name: str = Field(min_length=1)
    champion: BundleRef | None = None
    previous: BundleRef | None = None
    challengers: tuple[Challenger, ...] = ()
    shadow: Shadow | None = None
    updated_at: str
    reason: str = ""
    change: Change | None = None

    @property
    def challenger(self) -> Challenger | None:
        """The first challenger; None without one."""
        return self.challengers[0] if self.challengers else None

    @property
    def experiments(self) -> list[Challenger | Shadow]:
        """The challengers and the shadow."""
        return [*self.challengers, *([self.shadow] if self.shadow else [])]

    @model_validator(mode="after")
    def _models_differ(self) -> Self:
        beside = [one.ref.version for one in self.experiments]
        if self.champion is None and beside:
            raise ValueError("a challenger or a shadow needs a champion")
        if self.champion is not None and self.champion.version in beside:
            raise ValueError(f"version {self.champion.version} is champion and cannot run alongside itself")
        if twice := [version for version in beside if beside.count(version) > 1]:
            raise ValueError(f"version {twice[0]} is listed twice; each version has one share")
        return self

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if (total := math.fsum(one.share for one in self.challengers)) > 1 + SHARE_TOLERANCE:
            raise ValueError(f"the challengers' shares add up to {total:.4g}; together they may be 1 at most")
        if len({one.salt for one in self.challengers}) > 1:
            raise ValueError("the challengers have different salts; one experiment has one salt")
        return self


def bundle_folder(folder: Path, ref: BundleRef) -> Path:
    """Folder of a bundle; its name has the digest, because a new registry counts versions from 1 again."""
    path = folder / BUNDLES / f"{ref.version}-{short_digest(ref.digest)}"
    # Older folders have only the version.
    former = folder / BUNDLES / ref.version
    return former if former.is_dir() and not path.is_dir() else path


def find_bundle(folder: Path, digest: str) -> Path | None:
    """Find the folder of the bundle whose manifest has this sha256, under any version."""
    manifests = sorted((folder / BUNDLES).glob(f"[!.]*/{MANIFEST}"))
    return next((path.parent for path in manifests if sha256_file(path) == digest), None)


def read_routing(folder: Path) -> Routing:
    """Read routing.json.

    Raises:
        ServingError: it is missing or cannot be read.
        ConfigError: it is not what `write_routing` writes.
    """
    try:
        content = read_json(folder / ROUTING)
    except FileNotFoundError:
        raise ServingError(f"{ROUTING} is missing from the serving folder; roll a model out first") from None
    except OSError as error:
        raise ServingError(f"{ROUTING} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ServingError(f"{ROUTING} is not valid JSON; roll a model out again") from None
    return config_model.parse(_upgrade(content) if isinstance(content, dict) else content, Routing, name=ROUTING)


def write_routing(folder: Path, routing: Routing) -> None:
    """Replace routing.json atomically; its bundles must be in place already.

    With one challenger or none it is written in format 2, so that servers of the previous version of this package
    follow too. They reject format 3 and keep serving what they have.
    """
    content = routing.model_dump(mode="json")
    if len(routing.challengers) <= 1:
        found = content.pop("challengers")
        content |= {"format": 2, "challenger": found[0] if found else None}
    write_json(folder / ROUTING, content)


def find_incompatibility(champion: Contract, other: Contract) -> str:
    """Explain why a model cannot serve rows that were validated by the champion's contract; empty if it can."""
    if (other.target.name, other.classes) != (champion.target.name, champion.classes):
        return (
            f"it predicts '{other.target.name}' ({other.task}), the champion '{champion.target.name}' ({champion.task})"
        )
    known = {column.name: column for column in champion.inputs}
    for column in other.inputs:
        if column.name not in known:
            return f"it needs the column '{column.name}', which the champion's contract does not have"
        theirs = known[column.name]
        if not (column.is_numeric and theirs.is_numeric) and column.type != theirs.type:
            return f"its column '{column.name}' is {column.type}, the champion's {theirs.type}"
    return ""


def _upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert formats 1, whose keys for experiments were never used, and 2, which has one challenger."""
    found = dict(content)
    if found.get("format") == 1:
        found = {key: value for key, value in found.items() if key not in {"challenger", "share", "shadow"}}
    if found.get("format", 2) in (1, 2):
        one = found.pop("challenger", None)
        found |= {"format": 3, "challengers": [] if one is None else [one]}
    return found
