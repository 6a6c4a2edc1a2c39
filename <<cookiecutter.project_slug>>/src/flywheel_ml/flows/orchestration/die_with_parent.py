"""Runs a Python module that ends with its parent, however that ends, and takes along all that it started.

The parent holds the other end of its standard input; when that closes, the whole process group is killed.

python -m flywheel_ml.flows.orchestration.die_with_parent mlflow server …
"""

import os
import runpy
import signal
import sys
import threading


def watch_parent() -> None:
    """Tie this process, and its process group, to standard input. It must lead a group of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    # Not a polite signal: nothing may keep an orphan alive.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    watch_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
