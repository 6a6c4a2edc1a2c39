"""Polls files for changes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.2

FileSignature = tuple[str, int, int, int, int]


def file_signature(path: Path) -> FileSignature:
    """Differs after every change of a file; the same for every file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return (str(path), 0, 0, 0, 0)
    # The change time cannot be set back by a program that rewrites a file and restores its dates.
    return (str(path), found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


async def poll(refresh: Callable[[], None], on_error: Callable[[Exception], None]) -> None:
    """Call `refresh` in a thread every `POLL_SECONDS`, for ever; `on_error` gets what it raises."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            await asyncio.to_thread(refresh)
        except Exception as error:
            # Whatever it was, what is in memory stays in force and the next look may succeed.
            on_error(error)
