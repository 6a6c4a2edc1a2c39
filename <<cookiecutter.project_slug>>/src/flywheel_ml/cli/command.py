"""Runs a stage or command as a process and turns its errors into one line and an exit status."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from flywheel_ml.core.paths import TRACE
from flywheel_ml.core.settings import QUIET
from flywheel_ml.utils.errors import ConfigError, ProjectError


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a stage or command as a process; a `ProjectError` becomes one line and a non-zero exit status."""
    os.environ.update(QUIET)
    try:
        main()
    except ProjectError as error:
        _exit_with_error(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        # The image of the server has only what `serve` needs.
        _exit_with_error(
            ConfigError(
                f"this command needs the library '{error.name}', which is not installed here; run it in the project "
                "after `make install`, or in the image for training"
            )
        )
    except OSError as error:
        # A full disk, a missing permission, a stage run before its predecessor: not a bug of this program.
        name = f"{error.filename}: " if error.filename else ""
        _exit_with_error(ProjectError(f"{name}{error.strerror or _one_line(error)}{_save_traceback()}"))
    except Exception as error:
        _exit_with_error(
            ProjectError(
                f"unexpected {type(error).__name__}: {_one_line(error)}: a bug in this program{_save_traceback()}"
            )
        )
    finally:
        # Frozen objects skip the interpreter's final collections, which take seconds after importing MLflow.
        gc.freeze()
    sys.exit(0)


def _save_traceback() -> str:
    """Save the traceback if possible; returns a note that names the file."""
    try:
        TRACE.parent.mkdir(parents=True, exist_ok=True)
        TRACE.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return ""
    return f" (see {TRACE})"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


def _exit_with_error(error: ProjectError) -> NoReturn:
    """Print the error and exit with its status."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
