"""The serving folder: the bundle that serves predictions, and its challenger or shadow.

    routing.json                      the `Routing`; replaced atomically
    bundles/<version>-<digest>/       one bundle each
    monitoring.prom, alerts.prom      metrics that servers add to their own

`rollout` and `monitor` write the folder, servers only read it.
"""

from collections.abc import Mapping
from hashlib import blake2b
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
        """Whether it serves a key: its salted blake2b hash (RFC 7693) is below the share, on every machine alike."""
        place = blake2b(key, digest_size=8, salt=bytes.fromhex(self.salt)).digest()
        return int.from_bytes(place) < self.share * 2**64


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

    format: Literal[2] = 2
    name: str = Field(min_length=1)
    champion: BundleRef | None = None
    previous: BundleRef | None = None
    challenger: Challenger | None = None
    shadow: Shadow | None = None
    updated_at: str
    reason: str = ""
    change: Change | None = None

    @model_validator(mode="after")
    def _models_differ(self) -> Self:
        beside = [one.ref.version for one in (self.challenger, self.shadow) if one is not None]
        if self.champion is None and beside:
            raise ValueError("a challenger or a shadow needs a champion")
        if self.champion is not None and self.champion.version in beside:
            raise ValueError(f"version {self.champion.version} is champion and cannot run alongside itself")
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
    if isinstance(content, dict) and content.get("format") == 1:
        content = _upgrade(content)
    return config_model.parse(content, Routing, name=ROUTING)


def write_routing(folder: Path, routing: Routing) -> None:
    """Replace routing.json atomically; its bundles must be in place already."""
    write_json(folder / ROUTING, routing.model_dump(mode="json"))


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
    """Convert format 1, whose keys for experiments were never used."""
    gone = {"challenger", "share", "shadow"}
    return {**{key: value for key, value in content.items() if key not in gone}, "format": 2}
