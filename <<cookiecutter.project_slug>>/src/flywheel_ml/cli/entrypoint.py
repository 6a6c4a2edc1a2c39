"""Entry point of the command; an interrupt during imports ends it without a traceback."""

import signal
import sys
from typing import NoReturn


def main(project: str) -> NoReturn:
    """Load the project and run the command line; `stage NAME` runs one stage of dvc.yaml.

    Args:
        project: `module:attribute` of the project's `Project`.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is not signal.SIG_IGN:  # It is ignored in a process that a script starts in the background.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flywheel_ml.core.project import import_reference

    found = import_reference(project)
    if sys.argv[1:2] == ["stage"]:
        from flywheel_ml.cli.stages import main as run_stage

        signal.signal(signal.SIGINT, interrupt)
        run_stage(found, sys.argv[2:])
    from flywheel_ml.cli.verbs import main as run_verb

    signal.signal(signal.SIGINT, interrupt)
    run_verb(found)
