"""Scores one large request on several cores; ONNX Runtime releases the interpreter's lock."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.features import Inputs

MIN_THREAD_ROWS = 250
"""Minimum rows that are worth a thread."""
MIN_ROWS = 2 * MIN_THREAD_ROWS
"""Number of rows from which `run` uses several threads."""
MAX_THREADS = 4

# The cores that this process may use; in a container or under `taskset` not all of the machine.
_CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
_THREADS = min(MAX_THREADS, _CORES)
# The pool starts no thread before the first large request.
_POOL = ThreadPoolExecutor(max(1, _THREADS - 1), thread_name_prefix="rows")


def run(bundle: Bundle, inputs: Inputs) -> np.ndarray:
    """Return the same bits as `Bundle.run`, computed on several threads."""
    pieces = min(_THREADS, len(inputs.num) // MIN_THREAD_ROWS)
    if pieces < 2:
        return bundle.run(inputs)
    own, *others = (Inputs(*parts) for parts in zip(*(np.array_split(whole, pieces) for whole in inputs), strict=True))
    running = [_POOL.submit(bundle.run, part) for part in others]
    return np.concatenate([bundle.run(own), *(part.result() for part in running)])
