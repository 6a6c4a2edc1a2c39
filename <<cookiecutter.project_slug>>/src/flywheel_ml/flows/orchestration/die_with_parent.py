"""Runs a Python module that stops when its parent dies, together with all processes it started.

The parent holds the other end of standard input; when it closes, the whole process group is killed.

python -m flywheel_ml.flows.orchestration.die_with_parent mlflow server …
"""

import os
import runpy
import signal
import sys
import threading


def watch_parent() -> None:
    """Kill this process and its group when standard input closes; the process must lead its own group."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Without Python's buffer: its lock would abort a process that ends by itself while this thread reads.
    while os.read(0, 65_536):
        pass
    # SIGKILL cannot be ignored, so no orphan stays alive.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    watch_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
