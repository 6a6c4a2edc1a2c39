"""Replaces many files atomically: all of them or, if anything fails, none.

New files are written below `NEW`. Then each old file is moved aside and its replacement moved in, by renaming, and a
journal lists the files. `undo` reads the journal and reverts every rename, in the same process or, after a kill, in the
next one; it skips renames that are already reverted.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from flywheel_ml.utils.files import read_json, write_json

FOLDER = Path("var/adopting")
NEW = FOLDER / "new"
SCRATCH = FOLDER / "scratch"
JOURNAL = FOLDER / "journal.json"
BACKUP_PREFIX = "var/before-adoption-"


def start() -> None:
    """Create empty `NEW` and `SCRATCH` folders, after reverting what a killed process left unfinished."""
    recover()
    for folder in (NEW, SCRATCH):
        folder.mkdir(parents=True)


def clear() -> None:
    """Remove temporary files; an unfinished swap stays for `recover`."""
    if not JOURNAL.is_file():
        shutil.rmtree(FOLDER, ignore_errors=True)


def recover() -> None:
    """Revert what a killed process left unfinished. Call it only while holding the project's lock."""
    if JOURNAL.is_file():
        undo()
    clear()


def swap(gone: Iterable[Path]) -> Path:
    """Move everything below `NEW` into place and `gone` aside; returns the folder with the previous files."""
    made = sorted(path.relative_to(NEW) for path in NEW.rglob("*") if path.is_file())
    touched = [*made, *sorted({path for path in gone if path.exists()} - set(made))]
    before = next(path for at in range(1, 10_000) if not (path := Path(f"{BACKUP_PREFIX}{at}")).exists())
    write_json(JOURNAL, {"before": str(before), "made": list(map(str, made)), "touched": list(map(str, touched))})
    try:
        for path in touched:
            if path.exists():
                (before / path).parent.mkdir(parents=True, exist_ok=True)
                path.replace(before / path)
            if path in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                (NEW / path).replace(path)
        JOURNAL.unlink()
    except BaseException:
        undo()
        raise
    return before


def undo() -> None:
    """Revert every completed rename of the journal."""
    journal = read_json(JOURNAL)
    before, made = Path(journal["before"]), set(journal["made"])
    for name in reversed(journal["touched"]):
        if name in made and not (NEW / name).exists():
            Path(name).replace(NEW / name)
        if (before / name).exists():
            (before / name).replace(name)
    shutil.rmtree(before, ignore_errors=True)
    JOURNAL.unlink()
