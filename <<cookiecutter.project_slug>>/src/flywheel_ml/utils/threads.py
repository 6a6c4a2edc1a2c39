"""Maps a function over items with a bounded number of threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 8
"""Each thread holds one item in memory."""

T = TypeVar("T")
R = TypeVar("R")


def count_threads() -> int:
    """Return how many threads to use: one a core, and at most `MAX_THREADS`."""
    return min(os.cpu_count() or 1, MAX_THREADS)


def map_in_order(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Map `function` over the items in order; the pool works at most `ahead` items ahead."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
