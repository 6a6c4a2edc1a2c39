"""What the steps of a replay share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

from rich.console import Console

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params, RolloutParams
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import training
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.replay.params import ReplayParams
from flywheel_ml.flows.replay.timeline.table import Timeline, read_timeline
from flywheel_ml.flows.replay.workspace import Workspace


class ReplayContext(NamedTuple):
    """State that the steps share; the current folder is the copy of the project.

    `params` are those of the project, with the policy and the canary of the replay, and without automatic promotion.
    """

    project: Project
    settings: Settings
    contract: Contract
    params: Params
    workspace: Workspace
    timeline: Timeline
    progress: Progress

    @classmethod
    def begin(cls, project: Project, settings: Settings, workspace: Workspace, progress: Progress) -> Self:
        """Read contract, parameters and the raw table of the copy."""
        contract, params = Contract.load(paths.CONTRACT), project.load_params()
        if not params.data.raw.is_file():
            training.provide_raw_data(project, params.data.raw)
        timeline = read_timeline(params.data.raw, contract, workspace.request.params)
        replay = workspace.request.params
        canary = replay.compress(params.canary)
        changed = params.model_copy(update={"policy": replay.policy, "canary": canary, "rollout": RolloutParams()})
        return cls(project, settings, contract, changed, workspace, timeline, progress)

    @property
    def replay(self) -> ReplayParams:
        """How time is compressed."""
        return self.workspace.request.params


class Stopwatch:
    """Adds up the seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time a block, also if it fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def round(self) -> dict[str, float]:
        """Return the seconds of each step, rounded."""
        return {name: round(value, 2) for name, value in self.seconds.items()}


def make_silent_progress() -> Progress:
    """Make a progress that prints nothing."""
    return Progress(Console(quiet=True))
