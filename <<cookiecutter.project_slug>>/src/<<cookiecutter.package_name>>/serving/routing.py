"""What the serving folder says: which bundle answers, and what may join it.

    routing.json          this model; replaced in one step
    bundles/<version>/    one sealed bundle each

`rollout` writes the folder, servers only read it.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from .. import strict
from ..errors import ServingError
from ..files import read_json, write_json

ROUTING, BUNDLES = "routing.json", "bundles"


class Ref(strict.Strict):
    """One bundle: the name of its folder and the sha256 of its manifest."""

    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class Routing(strict.Strict):
    """The whole of routing.json; `share` is the challenger's part of the traffic, in [0, 1]."""

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    champion: Ref | None = None
    previous: Ref | None = None
    challenger: Ref | None = None
    share: float = Field(default=0.0, ge=0, le=1)
    shadow: bool = False
    updated_at: str
    reason: str = ""


def bundle_folder(folder: Path, ref: Ref) -> Path:
    """Where a bundle lies in the serving folder."""
    return folder / BUNDLES / ref.version


def read(folder: Path) -> Routing:
    """Read routing.json.

    Raises:
        ServingError: it is missing or cannot be read.
        ConfigError: it is not what `write` writes.
    """
    try:
        content = read_json(folder / ROUTING)
    except FileNotFoundError:
        raise ServingError(f"{ROUTING} is missing from the serving folder; roll a model out first") from None
    except OSError as error:
        raise ServingError(f"{ROUTING} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ServingError(f"{ROUTING} is not valid JSON; roll a model out again") from None
    return strict.parse(content, Routing, name=ROUTING)


def write(folder: Path, routing: Routing) -> None:
    """Replace routing.json atomically; put the bundles it names in place before."""
    write_json(folder / ROUTING, routing.model_dump(mode="json"))
