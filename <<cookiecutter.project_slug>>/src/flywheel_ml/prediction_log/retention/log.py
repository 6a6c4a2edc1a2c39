"""A log as retention sees it: a folder of files with owners, or a database, and the spool of this machine."""

import shutil
from pathlib import Path
from typing import NamedTuple, Self

from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log.retention import database, requests
from flywheel_ml.prediction_log.retention.operations import Operation, merge
from flywheel_ml.prediction_log.retention.requests import Outcome
from flywheel_ml.prediction_log.retention.scan import ChunkReader
from flywheel_ml.prediction_log.stores import PAGE_BYTES
from flywheel_ml.utils.errors import ProjectError


class Log(NamedTuple):
    """The places where a log keeps rows.

    Attributes:
        target: a folder or a database URL, as in the settings.
        spool: the folder where servers on this machine keep rows while their database is unavailable.
        exports: the folder of exports and of their list.
    """

    target: str
    spool: Path
    exports: Path

    @classmethod
    def of_settings(cls, settings: Settings) -> Self:
        """Return the log of the settings."""
        return cls(settings.prediction_log, settings.log_spool_folder, settings.export_folder)

    @property
    def is_database(self) -> bool:
        """Whether the log is in a database."""
        return "://" in self.target

    @property
    def folder(self) -> Path:
        """The folder of requests, journals and the job lock."""
        return self.spool if self.is_database else Path(self.target)

    def require(self) -> None:
        """Raise `ProjectError` if there is no log yet."""
        if not self.is_database and not any(self.folder.glob("*.db")):
            raise ProjectError(
                f"no prediction log in '{self.target}'; serve predictions first, or set ML_PREDICTION_LOG"
            )

    def readers(self) -> list[ChunkReader]:
        """Return readers of the log and of the spool."""
        places = [self.target]
        if self.is_database and any(self.spool.glob("*.db")):
            places.append(str(self.spool))
        return [ChunkReader(place) for place in places]

    def change(self, operation: Operation) -> Outcome:
        """Carry out an operation on the log, and on the spool.

        Raises:
            ProjectError: the database cannot be used.
        """
        if not self.is_database:
            return requests.change_all(self.folder, operation)
        counts, failures = requests.change_all(self.spool, operation) if self.spool.is_dir() else Outcome({}, {})
        done = database.change_database(self.target, operation)
        return Outcome(merge(counts, done.counts), failures)

    def count_files(self) -> int:
        """Return the number of files of the log; 0 for a database."""
        return 0 if self.is_database else len(list(self.folder.glob("*.db")))

    def measure(self) -> tuple[int, int]:
        """Return the bytes that the log takes, and how many of them hold rows."""
        if self.is_database:
            return database.measure_bytes(self.target)
        paths = [path for path in self.folder.iterdir() if path.is_file() and ".db" in path.name]
        used = [path.stat().st_size - _count_unused(path) * PAGE_BYTES for path in paths if path.suffix == ".db"]
        return sum(path.stat().st_size for path in paths), sum(used)

    def measure_free(self) -> int | None:
        """Return the free bytes of the disk; None for a database on a server."""
        return None if self.is_database else shutil.disk_usage(self.folder).free


def _count_unused(path: Path) -> int:
    """Return the number of unused pages of a SQLite file, from its header (sqlite.org/fileformat.html)."""
    with path.open("rb") as stream:
        return int.from_bytes(stream.read(40)[36:40])
