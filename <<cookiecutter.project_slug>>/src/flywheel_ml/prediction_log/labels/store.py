"""Stores labels and values of metrics once: of known predictions or entities, without contradicting earlier ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock

from flywheel_ml.prediction_log.reader import Reader
from flywheel_ml.prediction_log.rows import EntityOutcome, MetricValue, Outcome
from flywheel_ml.prediction_log.spool import Spool
from flywheel_ml.prediction_log.stores import LabelConflict, Unavailable
from flywheel_ml.prediction_log.writer import Writer
from flywheel_ml.utils.errors import ProjectError

LOCK_SECONDS = 5.0
Label = Outcome | EntityOutcome | MetricValue
Key = tuple[type | str | int, ...]
"""Kind and key of a label."""
Stored = dict[Key, str | float]
"""Stored labels, as JSON texts, and values of metrics."""


class UnknownPredictions(ProjectError):
    """Ids that are not ids of predictions in the log.

    Args:
        ids: these ids.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"{len(ids)} of the ids are not ids of predictions")
        self.ids = ids


class LabelStore:
    """Writes labels through the writer of this process. One process at a time stores labels in a folder.

    Args:
        target: folder or database URL of the log.
        log: this process's writer.
    """

    def __init__(self, target: str, log: Writer) -> None:
        self._log = log
        self._reader = Reader(target, keep_open=True)
        spooled = log.spool.folder if log.spool else None
        self._folder = spooled if "://" in target else Path(target)

    def store(self, rows: Sequence[Label]) -> int:
        """Commit the labels that are not stored yet; returns their number. Either all are stored, or none.

        The label of an entity needs no prediction: it may be about an entity that the model has not met.

        Raises:
            UnknownPredictions: ids of labels are not in the log.
            LabelConflict: labels contradict each other or stored ones; the first label is kept.
            Unavailable: the log is unavailable.
        """
        with self._hold_lock():
            new = self.find_new(rows)
            self._log.append(new).result()
        return len(new)

    def find_new(self, rows: Sequence[Label]) -> list[Label]:
        """Return the labels that are not stored yet, each once; raises as `store`."""
        first, conflicts = _index(rows)
        by_id = {row.prediction_id: None for row in first.values() if not isinstance(row, EntityOutcome)}
        known, stored = self._look_up(list(by_id), list(first.values()))
        if unknown := [one for one in by_id if one not in known]:
            raise UnknownPredictions(unknown)
        conflicts += [row.key[0] for key, row in first.items() if stored.get(key, _content(row)) != _content(row)]
        if conflicts:
            raise LabelConflict(list(dict.fromkeys(conflicts)))
        return [row for key, row in first.items() if key not in stored]

    def close(self) -> None:
        """Close the connections; the writer stays open."""
        self._reader.close()

    def _look_up(self, ids: Sequence[str], rows: Sequence[Label]) -> tuple[set[str], Stored]:
        """Return the ids that belong to predictions, and what is stored under the keys of the rows."""
        known, stored, spool = set[str](), Stored(), self._log.spool
        # The spool first: rows move from the spool to the database, so this order misses none.
        if spool is not None:
            known, stored = spool.find_known(ids) if ids else known, _read_stored(spool, rows)
        try:
            known |= self._reader.find_known([one for one in ids if one not in known])
            stored |= _read_stored(self._reader, rows)
        except Exception:
            # The database is unavailable. Predictions that are still in the spool have no label there yet, and the
            # spooled label of an entity is compared again when the database is back.
            outage = self._log.outage
            if spool is not None and known.issuperset(ids):
                if outage is not None or not any(isinstance(row, EntityOutcome) for row in rows):
                    return known, stored
            elif spool is not None and outage is not None:
                raise Unavailable(outage) from None
            raise
        return known, stored

    @contextmanager
    def _hold_lock(self) -> Iterator[None]:
        # Each process writes a separate file, so no database constraint prevents two labels of one prediction.
        if self._folder is None:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._folder / ".feedback.lock", timeout=LOCK_SECONDS):
            yield


def _index(rows: Sequence[Label]) -> tuple[dict[Key, Label], list[str]]:
    """Return the first row of each key, and the ids and entities of rows that contradict it."""
    first: dict[Key, Label] = {}
    for row in rows:
        first.setdefault((type(row), *row.key), row)
    return first, [row.key[0] for row in rows if _content(first[type(row), *row.key]) != _content(row)]


def _read_stored(source: Reader | Spool, rows: Sequence[Label]) -> Stored:
    """Return what is stored under the keys of some rows."""
    names: dict[type, dict[str, None]] = {Outcome: {}, EntityOutcome: {}, MetricValue: {}}
    for row in rows:
        names[type(row)][row.key[0]] = None
    by_id, entities, valued = (list(some) for some in names.values())
    found: Stored = {(Outcome, name): label for name, label in source.labels(by_id).items()} if by_id else {}
    if entities:
        found |= {(EntityOutcome, *row.key): row.label for row in source.entity_labels(sorted(entities))}
    if valued:
        found |= {(MetricValue, *row.key): row.value for row in source.metric_values(valued)}
    return found


def _content(row: Label) -> str | float:
    return row.value if isinstance(row, MetricValue) else row.label
