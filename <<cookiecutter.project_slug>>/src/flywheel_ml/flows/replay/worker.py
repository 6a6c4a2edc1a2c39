"""The process of a replay: its current folder is the copy of the project, and it imports the copy's code.

python -m flywheel_ml.flows.orchestration.die_with_parent flywheel_ml.flows.replay.worker PROJECT WORKSPACE
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from flywheel_ml.core.project import Project, import_reference
from flywheel_ml.core.settings import QUIET, Settings
from flywheel_ml.flows.orchestration.worker import write_answer
from flywheel_ml.flows.progress import Progress
from flywheel_ml.flows.replay.workspace import OUTPUT, REQUEST, ReplayRequest, Workspace
from flywheel_ml.monitoring.replay import page, picture
from flywheel_ml.monitoring.replay.result import ReplayResult
from flywheel_ml.utils import config_model


def main(reference: str, folder: Path) -> None:
    """Replay, and write the pages and the answer, or the error, into the workspace.

    Args:
        reference: the project, `module:attribute`.
        folder: the workspace.
    """
    os.environ.update(QUIET)
    workspace = Workspace(folder, config_model.load(folder / REQUEST, ReplayRequest))

    def work() -> Mapping[str, Any]:
        with _keep_output(folder / OUTPUT) as console:
            result = _replay(import_reference(reference), workspace, Progress(console))
        _write(folder, result)
        return {"done": True}

    write_answer(workspace.answer, "replay", folder / "last-error.txt", work)


def _replay(project: Project, workspace: Workspace, progress: Progress) -> ReplayResult:
    from flywheel_ml.flows.replay.loop import replay

    return replay(project, Settings.read(), workspace, progress)


def _write(folder: Path, result: ReplayResult) -> None:
    texts = {"json": result.to_json(), "html": page.render_page(result), "svg": picture.render_picture(result)}
    for suffix, text in texts.items():
        (folder / f"latest.{suffix}").write_text(text, encoding="utf-8")


@contextmanager
def _keep_output(path: Path) -> Iterator[Console]:
    """Send what stages print to a file; yields the console of the terminal."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as terminal, path.open("wb") as output:
        before = os.dup(1)
        os.dup2(output.fileno(), 1)
        try:
            yield Console(file=terminal, highlight=False)
        finally:
            sys.stdout.flush()
            os.dup2(before, 1)
            os.close(before)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
