"""The folder of a replay: a copy of the project with a repository, registry, serving folder and log of its own."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import yaml

from flywheel_ml.core import paths
from flywheel_ml.core.params import DataParams
from flywheel_ml.core.settings import PREFIX
from flywheel_ml.flows.orchestration.engine import lock_project
from flywheel_ml.flows.replay.params import ReplayParams
from flywheel_ml.flows.versioning import dvc_stages, git
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import remove_folder, remove_leftovers, write_json

FOLDER = Path("build/replay")
LIBRARY = "src/flywheel_ml/flows/replay"
REQUEST, ANSWER, ORIGIN, CLONE, OUTPUT = "request.json", "answer.json", "origin.git", "project", "output.txt"
FOREIGN = (PREFIX, "PREFECT_")
"""Prefixes of environment variables that name stores, servers and sinks of the project that is replayed."""


class ReplayRequest(config_model.StrictModel):
    """What is replayed: a commit, with the project's own table or an adopted one.

    Attributes:
        id: names the folder.
        commit: the commit whose code and parameters are used.
        has_edits: whether the working tree has edits, which take no part.
        params: how time is compressed.
    """

    id: str
    commit: str
    has_edits: bool
    params: ReplayParams


class Workspace(NamedTuple):
    """The folder of one replay, absolute, with its request."""

    folder: Path
    request: ReplayRequest

    @property
    def clone(self) -> Path:
        """The copy of the repository."""
        return self.folder / CLONE

    @property
    def answer(self) -> Path:
        """The file with the result, or the error."""
        return self.folder / ANSWER


def make_request(params: ReplayParams) -> ReplayRequest:
    """Make a request for the current commit.

    Raises:
        ConfigError: there is no commit, or its library cannot replay.
    """
    commit = git.require_commit("a replay", LIBRARY)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    return ReplayRequest(id=name, commit=commit, has_edits=git.is_dirty(), params=params)


@contextmanager
def open_workspace(request: ReplayRequest) -> Iterator[Workspace]:
    """Make the folder of a replay, see `open_folder`, with its request."""
    with open_folder(request.id) as folder:
        write_json(folder / REQUEST, request.model_dump(mode="json"))
        yield Workspace(folder, request)


@contextmanager
def open_folder(name: str = "synthetic") -> Iterator[Path]:
    """Lock the folder of replays, remove those of earlier or killed ones, and make a new one, which stays.

    Raises:
        Busy: another replay of this project is running.
    """
    with lock_project(FOLDER, "replay"):
        remove_leftovers(FOLDER)
        for earlier in [path for path in FOLDER.glob("[!.]*") if path.is_dir()]:
            remove_folder(earlier)
        (FOLDER / name).mkdir()
        yield (FOLDER / name).absolute()


def make_clone(workspace: Workspace) -> Path:
    """Copy repository and raw table; return the project's folder in the copy. The project itself is only read.

    Branches that the replay commits go to a bare repository in its folder. If the raw table is missing, DVC or the
    project's source provides it later.
    """
    top = git.call_git("rev-parse", "--show-toplevel").strip()
    inside = git.call_git("rev-parse", "--show-prefix").strip()
    origin, folder = workspace.folder / ORIGIN, workspace.clone / inside
    share = ("clone", "--quiet", "--shared", "--template=")
    git.call_git(*share, "--bare", top, str(origin))
    git.call_git(*share, "--no-checkout", str(origin), str(workspace.clone))
    git.call_git("checkout", "--quiet", "-b", "replay", workspace.request.commit, folder=workspace.clone)
    git.copy_identity(workspace.clone)
    # Bins of a later model would be knowledge of the future.
    (folder / paths.PROFILE_BINS).unlink(missing_ok=True)
    raw = find_raw(folder)
    if raw.is_file():
        (folder / raw).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(raw, folder / raw)
    else:
        dvc_stages.share_cache(folder)
    return folder


def find_raw(folder: Path) -> Path:
    """Find the path of the raw table; without the project's own classes, which edits may have broken."""
    try:
        content = yaml.safe_load((folder / paths.PARAMS).read_text(encoding="utf-8"))["data"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        raise ConfigError(f"{paths.PARAMS} of the last commit has no group 'data'; restore and commit it") from None
    return config_model.parse(content, DataParams, name=paths.PARAMS.name).raw


def build_environment(folder: Path) -> dict[str, str]:
    """Build the environment of a process in the copy: its code and its stores, and no sink of the project."""
    own = {name: value for name, value in os.environ.items() if not name.upper().startswith(FOREIGN)}
    return {**own, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder / "src"), own.get("PYTHONPATH"))))}
