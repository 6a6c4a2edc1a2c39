"""Many files changed as one: all of them, or, whatever happens on the way, none.

What is to come is made below `NEW`. Then each present file is set aside and its successor moved in, by renaming, with
a journal that says which. `undo` reads the journal and turns every rename back, be it in the same process or, after a
kill, in the next; what it finds undone already, it leaves.
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
    """Have `NEW` and `SCRATCH` empty; what a killed process left half-done is undone first."""
    recover()
    for folder in (NEW, SCRATCH):
        folder.mkdir(parents=True)


def clear() -> None:
    """Remove what only this process needed; what is half-done stays for `recover`."""
    if not JOURNAL.is_file():
        shutil.rmtree(FOLDER, ignore_errors=True)


def recover() -> None:
    """Undo what a killed process left half-done. Only the holder of the project's lock may."""
    if JOURNAL.is_file():
        undo()
    clear()


def swap(gone: Iterable[Path]) -> Path:
    """Move everything below `NEW` to its place and `gone` out of the way; the folder that holds what was there."""
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
    """Turn back every rename of the journal that was done."""
    journal = read_json(JOURNAL)
    before, made = Path(journal["before"]), set(journal["made"])
    for name in reversed(journal["touched"]):
        if name in made and not (NEW / name).exists():
            Path(name).replace(NEW / name)
        if (before / name).exists():
            (before / name).replace(name)
    shutil.rmtree(before, ignore_errors=True)
    JOURNAL.unlink()
