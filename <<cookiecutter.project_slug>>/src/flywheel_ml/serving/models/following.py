"""Notices that a file has changed, by looking: no file system has to say so."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from flywheel_ml.serving.http.telemetry import explained

POLL_SECONDS = 0.2

Stamp = tuple[str, int, int, int, int]


def stamp(path: Path) -> Stamp:
    """Differs after every change of a file; the same for every file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return (str(path), 0, 0, 0, 0)
    # The change time cannot be set back by a program that rewrites a file and restores its dates.
    return (str(path), found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


async def follow(refresh: Callable[[], None], log: structlog.typing.FilteringBoundLogger, what: str) -> None:
    """Call `refresh` in a thread every `POLL_SECONDS`, for ever; `what` is the event that its faults are logged as."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            await asyncio.to_thread(refresh)
        except Exception as error:
            # Whatever it was, what is in memory stays in force and the next look may succeed.
            log.error(what, **explained(error))
