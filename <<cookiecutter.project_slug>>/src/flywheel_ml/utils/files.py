"""Atomic file writes, canonical JSON and hashes."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.(part|old)")
"""Names that `tempfile` creates for the functions below; other hidden files are not touched."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it replaces `path` atomically on success and is deleted on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Like `replacing` for a folder: replaces the folder at `path` once the new one is complete.

    No system call swaps two folders. A process killed in between leaves the old folder set aside, and
    `remove_leftovers` restores it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield part
        part.chmod(0o755)
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
        try:
            if path.exists():
                path.replace(old / path.name)
            part.replace(path)
        finally:
            _restore(old, path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder atomically; if the process is killed, `remove_leftovers` deletes the rest."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    path.replace(aside)
    shutil.rmtree(aside)


def _restore(old: Path, folder: Path) -> None:
    """Restore what was set aside, unless its place is taken by now."""
    for path in old.iterdir():
        if not (folder / path.name).exists():
            path.replace(folder / path.name)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as sorted, indented JSON, atomically; equal content gives equal bytes."""
    with replacing(path) as part:
        part.write_text(canonical_json(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def canonical_json(content: Any, indent: int | None = None) -> str:
    """Serialize to JSON so that equal content gives equal text: sorted keys, no NaN, minimal escapes."""
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(
        content, sort_keys=True, indent=indent, separators=separators, allow_nan=False, ensure_ascii=False
    )


def sha256_text(text: str) -> str:
    """Return the hex digest of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex digest of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_leftovers(*folders: Path) -> None:
    """Delete half-written files of killed processes in these folders; call it only while holding the project's lock.

    A folder that was set aside and never replaced is restored.
    """
    for folder in folders:
        for left in [path for path in folder.glob(".*") if _LEFTOVER.fullmatch(path.name)]:
            if left.suffix == ".part":
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            elif left.is_dir():
                _restore(left, folder)
