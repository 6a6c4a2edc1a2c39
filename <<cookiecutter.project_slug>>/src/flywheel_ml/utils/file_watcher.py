"""Polls files for changes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.2

FileSignature = tuple[str, int, int, int, int]


def file_signature(path: Path) -> FileSignature:
    """Return a value that differs after every change of a file; constant while the file is absent."""
    try:
        found = path.stat()
    except OSError:
        return (str(path), 0, 0, 0, 0)
    # A program that rewrites a file can restore its modification time, but not its change time.
    return (str(path), found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


async def poll(refresh: Callable[[], None], on_error: Callable[[Exception], None]) -> None:
    """Call `refresh` in a thread every `POLL_SECONDS`, forever; `on_error` receives its exceptions."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            await asyncio.to_thread(refresh)
        except Exception as error:
            # The state in memory stays valid, and the next poll may succeed.
            on_error(error)
