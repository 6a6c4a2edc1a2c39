"""Erases everything that a log and its copies know about one entity.

A journal in the folder of requests holds the key and the ids of its predictions until all is done. The next erasure,
or the next start of a server, completes what a killed one left.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import Field, ValidationError

from flywheel_ml.prediction_log.reader import unpack_block
from flywheel_ml.prediction_log.retention import copies, requests, tombstones
from flywheel_ml.prediction_log.retention.export import ENTITY, MANIFEST, read_manifest
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.operations import LABEL_TABLES, Operation, merge
from flywheel_ml.prediction_log.retention.scan import BLOCKS_PER_CHUNK, IDS_PER_REQUEST, ChunkReader, split
from flywheel_ml.prediction_log.rows import Block, Prediction, blocks, new_id, predictions
from flywheel_ml.prediction_log.spool import REJECTED_FILE
from flywheel_ml.utils.config_model import StrictModel
from flywheel_ml.utils.errors import ConfigError, DataError, ProjectError
from flywheel_ml.utils.files import remove_leftovers, write_json

JOURNAL = "erase-"
MAX_PASSES = 3
"""How often the log is searched for rows that arrived during the erasure."""
BACKUPS = "backups and copies of the log that other programs made"


class Journal(StrictModel):
    """An erasure in progress.

    Attributes:
        key: of the entity.
        tables: Parquet files to search, each with the column of the key.
        ids: ids of the predictions found so far; their labels have no other link to the entity.
        counts: table → deleted rows so far.
        files: changed Parquet file → deleted rows so far.
    """

    key: str = Field(min_length=1)
    tables: list[tuple[str, str]] = Field(default_factory=list)
    ids: list[str] = Field(default_factory=list)
    counts: dict[str, int] = Field(default_factory=dict)
    files: dict[str, int] = Field(default_factory=dict)


class EraseResult(NamedTuple):
    """What an erasure did.

    Attributes:
        counts: table → deleted rows.
        files: changed Parquet file → deleted rows.
        failures: what it should have reached and could not, with the reason.
        outside: what it never reaches.
        resumed: number of interrupted erasures that were completed first.
    """

    counts: dict[str, int]
    files: dict[str, int]
    failures: list[str]
    outside: list[str]
    resumed: int = 0

    @property
    def found(self) -> int:
        """Number of deleted rows."""
        return sum(self.counts.values()) + sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return self._asdict()


def erase(log: Log, key: str, tables: Sequence[tuple[str, str]] = ()) -> EraseResult:
    """Delete the rows, blocks and labels of an entity, and its rows in exports and other tables.

    Interrupted erasures are completed first. What cannot be reached does not end the erasure; it is reported.

    Args:
        log: the log.
        key: value of the contract's id column, as text.
        tables: Parquet files besides the exports, each with the name of the column of the key.

    Raises:
        ConfigError: the key is empty.
        ProjectError: the log cannot be read.
        Busy: another job is running.
    """
    if not key.strip():
        raise ConfigError("KEY is empty; give the value of the contract's id column")
    log.require()
    with requests.hold_job_lock(log.folder) as place:
        failures: list[str] = []
        resumed = 0
        for path in sorted(place.glob(f"{JOURNAL}*.json")):
            failures += _run(log, path, _read_journal(path)).failures
            resumed += 1
        path = place / f"{JOURNAL}{new_id()}.json"
        done = _run(log, path, Journal(key=key, tables=list(tables)))
    return done._replace(failures=[*dict.fromkeys([*failures, *done.failures])], resumed=resumed)


def resume(log: Log) -> list[EraseResult]:
    """Complete interrupted erasures; raises as `erase`."""
    if not has_interrupted(log):
        return []
    with requests.hold_job_lock(log.folder) as place:
        return [_run(log, path, _read_journal(path)) for path in sorted(place.glob(f"{JOURNAL}*.json"))]


def has_interrupted(log: Log) -> bool:
    """Whether an erasure was interrupted, or is running."""
    return any((log.folder / requests.FOLDER).glob(f"{JOURNAL}*.json"))


def _read_journal(path: Path) -> Journal:
    try:
        return Journal.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, ValueError):
        raise DataError(f"'{path}', the journal of an erasure, is damaged; remove it and repeat the erasure") from None


def _run(log: Log, path: Path, journal: Journal) -> EraseResult:
    _save(path, journal)
    failures, before = dict[str, str](), list(journal.ids)
    for _ in range(MAX_PASSES):
        if not _erase_rows(log, path, journal, failures):
            break
    else:
        failures["log"] = f"rows of this key still arrived in search {MAX_PASSES}; stop sending them, then repeat"
    for some in split(before, IDS_PER_REQUEST):  # Labels of predictions that an interrupted run deleted.
        _change(log, Operation(kind="delete", ids={table: list(some) for table in LABEL_TABLES}), journal, failures)
    _change(log, Operation(kind="delete", entity=journal.key, scrub=True), journal, failures)
    is_complete = not failures
    tombstones.add(log.folder, journal.key)
    outside = _remove_remains(log, journal, failures)
    for name, reason in _erase_copies(log, path, journal):
        failures[name] = reason
    _check_rejected(log, journal.key, failures)
    if is_complete:  # Otherwise the next erasure continues: the ids are the only link to what is left.
        path.unlink(missing_ok=True)
    lines = [f"{name}: {reason}" for name, reason in failures.items()]
    return EraseResult(journal.counts, journal.files, lines, [*outside, BACKUPS])


def _save(path: Path, journal: Journal) -> None:
    write_json(path, journal.model_dump(mode="json"))


def _change(log: Log, operation: Operation, journal: Journal, failures: dict[str, str]) -> None:
    counts, failed = log.change(operation)
    journal.counts.update(merge(journal.counts, counts))
    failures.update(failed)


def _erase_rows(log: Log, path: Path, journal: Journal, failures: dict[str, str]) -> int:
    """Delete the rows and blocks found in one search; returns how many predictions it found."""
    found = 0
    for reader in log.readers():
        ids = [one for chunk in _find_predictions(reader, journal.key) for one in chunk]
        if ids:
            found += len(ids)
            journal.ids.extend(set(ids).difference(journal.ids))
            _save(path, journal)
            for some in split(ids, IDS_PER_REQUEST):
                listed = {table: list(some) for table in ("predictions", *LABEL_TABLES)}
                _change(log, Operation(kind="delete", ids=listed), journal, failures)
        for block, rows in _find_blocks(reader, journal.key):
            ids = [row.id for row in rows if row.entity_id == journal.key]
            found += len(ids)
            journal.ids.extend(ids)
            _save(path, journal)
            kept = [list(row) for row in rows if row.entity_id != journal.key]
            operation = Operation(kind="delete", ids=dict.fromkeys(LABEL_TABLES, ids), replacements={block: kept})
            _change(log, operation, journal, failures)
    return found


def _find_predictions(reader: ChunkReader, key: str) -> Iterator[list[str]]:
    def query(table: sa.FromClause) -> sa.Select[Any]:
        return sa.select(table.c.id).where(table.c.entity_id == key)

    for chunk in reader.scan(predictions, "timestamp_us", query, 0):
        yield [one for (one,) in chunk]


def _find_blocks(reader: ChunkReader, key: str) -> Iterator[tuple[str, list[Prediction]]]:
    """Yield the blocks with rows of an entity, unpacked."""

    def query(table: sa.FromClause) -> sa.Select[Any]:
        return sa.select(table).where(table.c.entity_column.is_not(None))

    text = json.dumps(key, ensure_ascii=False)[1:-1].encode()
    is_plain = key.isascii() and key.replace("-", "").replace("_", "").isalnum() and not _is_literal(key)
    for chunk in reader.scan(blocks, "timestamp_us", query, 0, BLOCKS_PER_CHUNK):
        for block in map(Block._make, chunk):
            # Unpacking costs a hundred times more than this search, which only JSON allows.
            if is_plain and bytes(block.inputs[:1]) == b"{" and text not in block.inputs:
                continue
            rows = list(unpack_block(block))
            if any(row.entity_id == key for row in rows):
                yield block.id, rows


def _is_literal(key: str) -> bool:
    """Whether JSON may write a value differently than Python's `str`."""
    if key in ("True", "False"):
        return True
    with suppress(ValueError):
        return not key.isdigit() and float(key) is not None
    return False


def _remove_remains(log: Log, journal: Journal, failures: dict[str, str]) -> list[str]:
    """Rebuild files in which bytes of deleted rows remain, if no process owns them; returns notes."""
    if log.is_database:
        return ["the write-ahead log archive and the replicas of the PostgreSQL server"]
    folder = log.folder

    def find() -> list[Path]:
        return copies.find_remains(sorted(folder.glob("*.db*")), journal.ids)

    def is_old(path: Path) -> bool:
        with suppress(OSError):
            return copies.keeps_unused_bytes(path)
        return False

    if find() or any(map(is_old, folder.glob("*.db"))):
        _change(log, Operation(kind="delete", scrub=True, rebuild=True), journal, failures)
        for path in find():
            failures[path.name] = "unused parts of the file still hold deleted bytes; stop the server, then repeat"
    return [
        f"unused parts of {path.name}, which an older version created; stop the server and repeat to rebuild it"
        for path in sorted(folder.glob("*.db"))
        if is_old(path)
    ]


def _erase_copies(log: Log, journal_path: Path, journal: Journal) -> Iterator[tuple[str, str]]:
    """Delete rows from exports and tables; yields the files that could not be changed, with the reason."""
    found: dict[Path, str] = {Path(path): column for path, column in journal.tables}
    try:
        for one in read_manifest(log):
            folder = Path(one["folder"])
            if not folder.is_dir():
                yield str(folder), f"this export is gone; move it back, or remove it from {log.exports / MANIFEST}"
            found |= dict.fromkeys(sorted(folder.rglob("*.parquet")), ENTITY)
    except ProjectError as error:
        yield "the list of exports", str(error)
    if log.exports.is_dir():
        remove_leftovers(log.exports)
        found |= dict.fromkeys(sorted(log.exports.rglob("*.parquet")), ENTITY)
    for path, column in found.items():
        if not path.is_file():
            continue
        try:
            deleted = copies.delete_from_parquet(path, column, journal.key)
        except ProjectError as error:
            yield str(path), str(error)
            continue
        if deleted:
            journal.files[str(path)] = journal.files.get(str(path), 0) + deleted
            _save(journal_path, journal)


def _check_rejected(log: Log, key: str, failures: dict[str, str]) -> None:
    """Report spooled rows that the database rejected; a person decides about them."""
    path = log.spool / REJECTED_FILE
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                if key in json.dumps(json.loads(line), ensure_ascii=False):
                    failures[str(path)] = "it holds rejected rows with this key; remove them by hand"
