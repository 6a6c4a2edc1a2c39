"""Appends notifications to a file, one JSON line each."""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from flywheel_ml.monitoring.alerting.notification import Notification

TAIL_BYTES = 1_000_000


def append(path: Path, notifications: Sequence[Notification]) -> None:
    """Append one JSON line per notification under a lock, so that lines of several processes do not mix.

    A notification that the file has already is skipped: its process was killed before it could record the write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # Otherwise another process's line may be read half-written.
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
        new = [one for one in notifications if f'"id":"{one.id}"'.encode() not in tail]
        # A line that a full disk cut off must not take the next one with it.
        start = b"\n" if tail and not tail.endswith(b"\n") else b""
        lines = start + "".join(one.to_json() + "\n" for one in new).encode()
        if new and os.write(descriptor, lines) < len(lines):
            raise OSError(f"{path} was not written completely")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
