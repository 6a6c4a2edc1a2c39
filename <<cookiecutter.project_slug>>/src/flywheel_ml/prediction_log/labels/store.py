"""Stores labels once: of known predictions, or of entities, and none that contradicts an earlier label."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock

from flywheel_ml.prediction_log.reader import Reader
from flywheel_ml.prediction_log.rows import EntityOutcome, Outcome
from flywheel_ml.prediction_log.stores import LabelConflict, Unavailable
from flywheel_ml.prediction_log.writer import Writer
from flywheel_ml.utils.errors import ProjectError

LOCK_SECONDS = 5.0
Label = Outcome | EntityOutcome


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
        by_id, by_key, conflicts = _index(rows)
        known, texts = self._find_stored(list(by_id))
        if unknown := [one for one in by_id if one not in known]:
            raise UnknownPredictions(unknown)
        stored = self._find_stored_entities(list(by_key))
        conflicts += [one for one, row in by_id.items() if texts.get(one, row.label) != row.label]
        conflicts += [key[0] for key, row in by_key.items() if stored.get(key, row.label) != row.label]
        if conflicts:
            raise LabelConflict(list(dict.fromkeys(conflicts)))
        new_ids: list[Label] = [row for one, row in by_id.items() if one not in texts]
        return new_ids + [row for key, row in by_key.items() if key not in stored]

    def close(self) -> None:
        """Close the connections; the writer stays open."""
        self._reader.close()

    def _find_stored(self, ids: Sequence[str]) -> tuple[set[str], dict[str, str]]:
        """Return the ids that belong to predictions, and the labels stored for them."""
        if not ids:
            return set(), {}
        if (spool := self._log.spool) is None:
            return self._reader.find_known(ids), self._reader.labels(ids)
        # The spool first: rows move from the spool to the database, so this order misses none.
        known, labels = spool.find_known(ids), spool.labels(ids)
        try:
            known |= self._reader.find_known([one for one in ids if one not in known])
            labels |= self._reader.labels(ids)
        except Exception:
            # The database is unavailable. Rows that are still in the spool have no label there yet.
            if not known.issuperset(ids):
                if (outage := self._log.outage) is not None:
                    raise Unavailable(outage) from None
                raise
        return known, labels

    def _find_stored_entities(self, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
        entities = sorted({entity for entity, _ in keys})
        if not entities:
            return {}
        found = self._log.spool.entity_labels(entities) if self._log.spool else []
        try:
            found += self._reader.entity_labels(entities)
        except Exception:
            # A spooled label is compared again when the database is back.
            if self._log.spool is None or self._log.outage is None:
                raise
        return {row.key: row.label for row in found}

    @contextmanager
    def _hold_lock(self) -> Iterator[None]:
        # Each process writes a separate file, so no database constraint prevents two labels of one prediction.
        if self._folder is None:
            yield
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._folder / ".feedback.lock", timeout=LOCK_SECONDS):
            yield


def _index(rows: Sequence[Label]) -> tuple[dict[str, Outcome], dict[tuple[str, int], EntityOutcome], list[str]]:
    """Return the first label of each id and of each key, and the ids and entities whose labels contradict it."""
    by_id: dict[str, Outcome] = {}
    by_key: dict[tuple[str, int], EntityOutcome] = {}
    conflicts = []
    for row in rows:
        if isinstance(row, Outcome):
            if by_id.setdefault(row.prediction_id, row).label != row.label:
                conflicts.append(row.prediction_id)
        elif by_key.setdefault(row.key, row).label != row.label:
            conflicts.append(row.entity_id)
    return by_id, by_key, conflicts
