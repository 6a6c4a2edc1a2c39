"""What every pipeline stage and command shares: where the project is, and how an error ends a process."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from flywheel_ml.core.settings import QUIET
from flywheel_ml.utils.errors import ProjectError

CONTRACT, PARAMS, DECISIONS = Path("contract.yaml"), Path("params.yaml"), Path("decisions.yaml")
TABLE = Path("data/table.parquet")
SPLITS = {name: Path(f"data/split/{name}.parquet") for name in ("train", "validation", "test")}
MODEL, BASELINE, SKLEARN_DEFAULT = (
    Path(f"model/{name}.joblib") for name in ("pipeline", "baseline", "sklearn_default")
)
OUT_OF_FOLD = Path("model/out_of_fold.parquet")
SELECTION_SECONDS = Path("var/selection.json")
BUNDLE = Path("bundle")
REPORTS = Path("reports")
PLOTS = REPORTS / "plots"
TUNING = Path("var/tuning")
TRACE = Path("var/last-error.txt")


def run(main: Callable[[], None]) -> NoReturn:
    """Run a stage or command as a process: a `ProjectError` becomes one line and a non-zero exit status."""
    os.environ.update(QUIET)
    try:
        main()
    except ProjectError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        # A full disk, a missing right, a stage run before its predecessor: the world, not this program.
        name = f"{error.filename}: " if error.filename else ""
        fail(ProjectError(f"{name}{error.strerror or _one_line(error)}{_trace()}"))
    except Exception as error:
        fail(ProjectError(f"unexpected {type(error).__name__}: {_one_line(error)}: a fault of this program{_trace()}"))
    finally:
        # What is frozen is left out of the interpreter's last collections: seconds, with all that MLflow imports.
        gc.freeze()
    sys.exit(0)


def _trace() -> str:
    """Keep the traceback, where that can be done, and say where."""
    try:
        TRACE.parent.mkdir(parents=True, exist_ok=True)
        TRACE.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return ""
    return f" (see {TRACE})"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


def fail(error: ProjectError) -> NoReturn:
    """Say the error and leave with its exit status."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
