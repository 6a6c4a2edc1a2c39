"""Exports a log to Parquet, one file per model contract, and lists the exports for erasures."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from flywheel_ml.core.contract import Column, Contract, is_missing, to_array, to_naive_utc
from flywheel_ml.prediction_log.retention import requests
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.scan import ChunkReader
from flywheel_ml.prediction_log.rows import Prediction, new_id, to_datetime
from flywheel_ml.utils.errors import ConfigError, DataError, ProjectError
from flywheel_ml.utils.files import read_json, remove_leftovers, replacing_folder, write_json
from flywheel_ml.utils.timestamps import EPOCH

MANIFEST = "exports.json"
PREFIX = "log_"
"""Begins the names of columns that do not come from the contract."""
ENTITY = f"{PREFIX}entity_id"
ROWS_PER_GROUP = 50_000
FOREVER_US = 2**62

FindContract = Callable[[str | None, str], Contract | None]
"""Finds the contract of a model by the digest of its bundle, or by its version if it has none; None if it is gone."""


class ExportResult(NamedTuple):
    """A finished export.

    Attributes:
        folder: the new folder.
        rows: file → rows.
        untyped: rows of models whose contract is no longer known; their inputs are JSON texts.
    """

    folder: str
    rows: dict[str, int]
    untyped: int

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return self._asdict()


def export(
    log: Log,
    find_contract: FindContract,
    since_us: int = 0,
    until_us: int = FOREVER_US,
    output: Path | None = None,
) -> ExportResult:
    """Export the predictions of a span with their labels to a new folder, which appears when it is complete.

    The export only reads, in short transactions, so servers are not delayed by locks.

    Args:
        log: the log.
        find_contract: finds the contract of a model.
        since_us: inclusive.
        until_us: exclusive.
        output: the folder to create; default: a new one in the folder of exports.

    Raises:
        ConfigError: pyarrow is not installed.
        ProjectError: the log does not exist, has no rows in the span, or the folder exists.
        Busy: another job is running.
    """
    log.require()
    try:
        import pyarrow as pa
    except ImportError:
        raise ConfigError("an export needs pyarrow; install the extra 'arrow'") from None
    pa.set_cpu_count(1)
    name = new_id()
    folder = (output or log.exports / name).resolve()
    if folder.exists():
        raise ProjectError(f"'{folder}' exists; name another folder, or remove it")
    with requests.hold_job_lock(log.folder):
        _remove_unfinished(log)
        entry = {"folder": str(folder), "since_us": since_us, "until_us": until_us, "complete": False}
        # Listed before it exists, so that no erasure misses it.
        _write_manifest(log, [*read_manifest(log), entry])
        try:
            with replacing_folder(folder) as part:
                rows, untyped = _write_files(log.readers()[0], find_contract, since_us, until_us, part)
                if not rows:
                    raise ProjectError(_describe_empty(since_us, until_us))
        finally:
            kept = [one for one in read_manifest(log) if one["folder"] != str(folder)]
            _write_manifest(log, [*kept, {**entry, "complete": True}] if folder.is_dir() else kept)
    return ExportResult(str(folder), rows, untyped)


def read_manifest(log: Log) -> list[dict[str, Any]]:
    """Return the listed exports, oldest first.

    Raises:
        DataError: the list is damaged.
    """
    path = log.exports / MANIFEST
    try:
        found = read_json(path)["exports"]
        return [dict(one, folder=str(one["folder"])) for one in found]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"'{path}' is damaged, so erasures cannot find the exports; restore it, or remove it and the exports"
        ) from None


def _write_manifest(log: Log, entries: Sequence[dict[str, Any]]) -> None:
    if entries or (log.exports / MANIFEST).exists():
        write_json(log.exports / MANIFEST, {"exports": list(entries)})


def _remove_unfinished(log: Log) -> None:
    """Remove what a killed export left."""
    listed = read_manifest(log)
    for place in {Path(one["folder"]).parent for one in listed if not one["complete"]} | {log.exports}:
        if place.is_dir():
            remove_leftovers(place)
    done = [one for one in listed if one["complete"] or Path(one["folder"]).is_dir()]
    if len(done) < len(listed) or not all(one["complete"] for one in listed):
        _write_manifest(log, [{**one, "complete": True} for one in done])


def _describe_empty(since_us: int, until_us: int) -> str:
    since = f" from {to_datetime(since_us):%F %T}" if since_us else ""
    until = f" until {to_datetime(until_us):%F %T}" if until_us != FOREVER_US else ""
    return f"the prediction log has no predictions{since}{until}; `make log-stats` shows its span"


class _File:
    """One Parquet file: the rows of all models with one contract."""

    def __init__(self, folder: Path, contract: Contract | None) -> None:
        fingerprint = contract.fingerprint()[:8] if contract else ""
        self.path = folder / (f"{contract.name}-{fingerprint}.parquet" if contract else "untyped.parquet")
        self.contract = contract
        self.rows = 0
        self._waiting: list[Any] = []
        self._writer: Any = None

    def add(self, table: Any) -> None:
        self._waiting.append(table)
        self.rows += table.num_rows
        if sum(one.num_rows for one in self._waiting) >= ROWS_PER_GROUP:
            self._write()

    def close(self) -> None:
        try:
            self._write()
        finally:
            if self._writer is not None:
                self._writer.close()

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._waiting:
            return
        table, self._waiting = pa.concat_tables(self._waiting), []
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table)


def _write_files(
    reader: ChunkReader, find_contract: FindContract, since_us: int, until_us: int, folder: Path
) -> tuple[dict[str, int], int]:
    files: dict[str, _File] = {}
    file_of: dict[tuple[str | None, str], _File] = {}
    try:
        for chunk in reader.read_predictions(since_us, until_us):
            labels, values = reader.find_labels(chunk), reader.find_metrics(chunk)
            by_model: dict[tuple[str | None, str], list[Prediction]] = {}
            for row in chunk:
                # Rows of older schemas have no digest.
                by_model.setdefault((row.model_digest, "" if row.model_digest else row.model_version), []).append(row)
            for model, rows in by_model.items():
                if model not in file_of:
                    found = _File(folder, find_contract(model[0], rows[0].model_version))
                    file_of[model] = files.setdefault(found.path.name, found)
                file_of[model].add(build_table(rows, labels, values, file_of[model].contract))
    finally:
        for file in files.values():
            file.close()
    untyped = sum(file.rows for file in files.values() if file.contract is None)
    return {name: file.rows for name, file in sorted(files.items())}, untyped


def build_table(
    rows: Sequence[Prediction], labels: dict[str, str], values: dict[str, dict[str, float]], contract: Contract | None
) -> Any:
    """Build the `pyarrow.Table` of predictions: the contract's inputs, its target, and the columns of the log.

    Args:
        rows: n predictions.
        labels: prediction id → label as JSON.
        values: prediction id → business metric → value.
        contract: types of inputs and target; without one, inputs and labels stay JSON texts.
    """
    import pyarrow as pa

    outcomes = [None if (text := labels.get(row.id)) is None else json.loads(text) for row in rows]
    columns: dict[str, Any] = {}
    if contract is None:
        columns["inputs"] = pa.array([row.inputs for row in rows], pa.string())
        columns["label"] = pa.array([labels.get(row.id) for row in rows], pa.string())
    else:
        inputs = [json.loads(row.inputs) for row in rows]
        for column in contract.inputs:
            columns[_rename(column.name)] = _to_arrow(column, [one.get(column.name) for one in inputs])
        columns[_rename(contract.target.name)] = _to_arrow(contract.target, outcomes)
        answers = [json.loads(row.output).get("prediction") for row in rows]
        columns[f"{PREFIX}prediction"] = (
            _to_arrow(contract.target, answers) if contract.classes else pa.array(answers, pa.float64())
        )
    zoned = pa.timestamp("us", "UTC")
    known = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "timestamp": pa.array([row.timestamp_us for row in rows], pa.int64()).cast(zoned),
        "entity_id": pa.array([row.entity_id for row in rows], pa.string()),
        "event_timestamp": pa.array([row.event_timestamp_us for row in rows], pa.int64()).cast(pa.timestamp("us")),
        "variant": pa.array([row.variant for row in rows], pa.string()),
        "model_version": pa.array([row.model_version for row in rows], pa.string()),
        "model_digest": pa.array([row.model_digest for row in rows], pa.string()),
        "output": pa.array([row.output for row in rows], pa.string()),
        "score": pa.array([row.score for row in rows], pa.float64()),
        "latency_us": pa.array([row.latency_us for row in rows], pa.int64()),
        "degraded": pa.array([bool(row.degraded) for row in rows], pa.bool_()),
        "assigned_variant": pa.array([row.assigned_variant for row in rows], pa.string()),
        "metrics": pa.array([json.dumps(values[row.id]) if row.id in values else None for row in rows], pa.string()),
        "has_label": pa.array([one is not None for one in outcomes], pa.bool_()),
    }
    columns |= {PREFIX + key: values for key, values in known.items()}
    return pa.table(columns)


def _rename(name: str) -> str:
    return f"{name}_of_row" if name.startswith(PREFIX) else name


def _to_arrow(column: Column, values: Sequence[Any]) -> Any:
    import pyarrow as pa

    try:
        array = to_array(column, [float("nan") if value is None and column.is_numeric else value for value in values])
        kinds = {
            "float": pa.float64(),
            "integer": pa.int64(),
            "boolean": pa.bool_(),
            "string": pa.string(),
            "datetime": pa.timestamp("us"),
        }
        return pa.array(array, mask=is_missing(array)).cast(kinds[column.type])
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"the prediction log has a value in '{column.name}' that is no {column.type} as its contract says: {reason}"
        ) from None


def parse_span(since: datetime | None, until: datetime | None) -> tuple[int, int]:
    """Convert a span to microseconds since 1970; a time without a zone is in UTC.

    Raises:
        ConfigError: the span is empty.
    """
    if since and until and _to_us(since) >= _to_us(until):
        raise ConfigError(f"FROM={since:%FT%T} is not before TO={until:%FT%T}; swap them")
    return _to_us(since) if since else 0, _to_us(until) if until else FOREVER_US


def _to_us(time: datetime) -> int:
    return (to_naive_utc(time) - EPOCH) // timedelta(microseconds=1)
