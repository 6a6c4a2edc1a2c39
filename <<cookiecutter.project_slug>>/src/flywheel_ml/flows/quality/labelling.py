"""Imports labels, or values of a business metric, from a file into the prediction log."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.business_metrics import MAX_VALUE, find_name_fault
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.parsing.series import parse_series
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.data.formats import reading
from flywheel_ml.prediction_log import (
    EntityOutcome,
    LabelConflict,
    MetricValue,
    Outcome,
    Reader,
    Writer,
    now_us,
    to_datetime,
)
from flywheel_ml.prediction_log.labels.store import Label, LabelStore, UnknownPredictions
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ConfigError, DataError
from flywheel_ml.utils.files import canonical_json

ROLE = "labels"
"""Role of the importing process; in a folder it writes a SQLite file of its own, next to a running server's."""
BATCH_ROWS = 10_000
MAX_CLOCK_SKEW_US = 60_000_000
LOCAL_ZONES = ("", "local")
_ID, _ENTITY, _TIMESTAMP, _LABEL, _METRIC, _VALUE = "id", "entity", "timestamp", "label", "metric", "value"


class ImportedLabels(NamedTuple):
    """How many labels a file has, how many of them were new, and how many rows had none."""

    labels: int
    new: int
    unlabelled: int


def import_labels(source: Path, settings: Settings, metric: str = "") -> ImportedLabels:
    """Store the labels of a file, or the values of a business metric; nothing is stored if one of them is wrong.

    The file has the columns `id` and `label`, or `entity`, `timestamp` and `label`. Where it lacks the last three, the
    contract's id, time and target columns are read instead, so that later rows of the user's own table are a valid
    file. Rows without a label are skipped. A repeated import has no effect, also after a killed one.

    Args:
        source: the file.
        settings: the log.
        metric: name of a business metric; the file then has the columns `id` and `value`, or one with this name.

    Raises:
        ConfigError: it is not a name of a metric.
        DataError: the file cannot be read or lacks a column; a value is of a wrong type; a label contradicts another
            one, or is about an unknown prediction; or no prediction is about any of the entities.
    """
    contract = Contract.load(paths.CONTRACT)
    if metric and (fault := find_name_fault(metric)):
        raise ConfigError(f"METRIC: {fault}")
    frame, unlabelled = read_metric(source, metric) if metric else read_labels(source, contract)
    now = now_us()
    with Writer(settings.prediction_log, ROLE, settings.log_synchronous) as log:
        store = LabelStore(settings.prediction_log, log)
        try:
            _check(source, frame, store, now)
            if _ENTITY in frame.columns:
                _check_entities(source, frame, settings, contract)
            new = sum(store.store(rows) for rows in _build_rows(frame, now))
        except (LabelConflict, UnknownPredictions) as error:
            raise DataError(f"{source}: {_describe(error)}; nothing more was imported") from None
        finally:
            store.close()
    return ImportedLabels(frame.height, new, unlabelled)


def read_labels(source: Path, contract: Contract) -> tuple[pl.DataFrame, int]:
    """Read `id` or `entity` and `timestamp_us`, and `label` as JSON text; and count the rows without a label.

    Raises:
        DataError: as `import_labels`.
    """
    with reading.open_table(str(source)) as found:
        raw = pl.concat(list(found.batches(BATCH_ROWS)) or [pl.DataFrame()])
    if raw.is_empty():
        raise DataError(f"{source} has no rows; there is nothing to import")
    target = contract.target
    label = _select(source, raw, _LABEL, target)
    if target.type == "boolean" and label.dtype == pl.Boolean:
        texts = label.replace_strict({True: "true", False: "false"}, return_dtype=pl.String)
    else:
        known = label.drop_nulls().unique().to_list()
        texts = label.replace_strict(
            known, [canonical_json(value) for value in known], default=None, return_dtype=pl.String
        )
    if contract.classes and (odd := sorted(set(label.drop_nulls().to_list()) - set(contract.classes))):
        raise DataError(f"{source}: the label {odd[0]!r} is not a class of '{target.name}'")
    columns = {_LABEL: texts}
    # A contract may call its own id column `id`: with a time, such a file has entities, not ids of predictions.
    is_own = contract.id is not None and _ID in (contract.id.name, contract.id.source)
    times = {_TIMESTAMP, *((contract.time.name, contract.time.source) if contract.time else ())}
    if _ID in raw.columns and not (is_own and times & set(raw.columns)):
        try:
            columns[_ID] = raw[_ID].cast(pl.String)
        except pl.exceptions.PolarsError:
            kind = raw[_ID].dtype
            raise DataError(f"{source}: column '{_ID}' is {kind}; give ids of predictions as texts") from None
        needed = [_ID]
    else:
        entity = contract.id or Column(name=_ENTITY, type="string", role="id")
        columns[_ENTITY] = _select(source, raw, _ENTITY, entity).cast(pl.String)
        columns["timestamp_us"] = _read_timestamps(source, raw, contract)
        needed = [_ENTITY, "timestamp_us"]
    frame = pl.DataFrame(columns).with_row_index("row").filter(pl.col(_LABEL).is_not_null())
    for name in needed:
        if (absent := frame.filter(pl.col(name).is_null())).height:
            shown = _TIMESTAMP if name == "timestamp_us" else name
            raise DataError(f"{source}: row {absent['row'][0]:,} has a label and no {shown}; rows count from 0")
    return frame, raw.height - frame.height


def read_metric(source: Path, metric: str) -> tuple[pl.DataFrame, int]:
    """Read `id`, `metric` and `value`; and count the rows without a value.

    Raises:
        DataError: as `import_labels`.
    """
    with reading.open_table(str(source)) as found:
        raw = pl.concat(list(found.batches(BATCH_ROWS)) or [pl.DataFrame()])
    if raw.is_empty():
        raise DataError(f"{source} has no rows; there is nothing to import")
    name = _VALUE if _VALUE in raw.columns else metric
    for column in (_ID, name):
        if column not in raw.columns:
            others = f" or '{_VALUE}'" if column == metric else ""
            raise DataError(
                f"{source} has no column '{column}'{others}; give id and value; {suggest(column, raw.columns)}"
            )
    values = _select(source, raw, name, Column(name=name, type="float"))
    frame = pl.DataFrame({_ID: raw[_ID].cast(pl.String), _METRIC: metric, _VALUE: values}).with_row_index("row")
    frame = frame.filter(pl.col(_VALUE).is_not_null() & pl.col(_VALUE).is_not_nan())
    if (odd := frame.filter(pl.col(_VALUE).abs() > MAX_VALUE)).height:
        raise DataError(
            f"{source}: column '{name}', row {odd['row'][0]:,}: {odd[_VALUE][0]:g} is beyond {MAX_VALUE:g}; "
            "give the metric in larger units"
        )
    if (absent := frame.filter(pl.col(_ID).is_null())).height:
        raise DataError(f"{source}: row {absent['row'][0]:,} has a value and no {_ID}; rows count from 0")
    return frame, raw.height - frame.height


def _select(source: Path, raw: pl.DataFrame, name: str, column: Column) -> pl.Series:
    """Return the column `name` of a file, or the contract's column, in the contract's type."""
    found = next((one for one in (name, column.name, column.source) if one and one in raw.columns), None)
    if found is None:
        others = f" or '{column.name}'" if column.name != name else ""
        hint = suggest(name, raw.columns)
        raise DataError(
            f"{source} has no column '{name}'{others}; give id and label, or entity, timestamp and label; {hint}"
        )
    values, wrong = parse_series(raw[found], column)
    if wrong.any():
        at = wrong.arg_true()[0]
        cell = raw[found][at]
        raise DataError(f"{source}: column '{found}', row {at:,}: {cell!r} {tables.describe_misfit(cell, column)}")
    return values


def _read_timestamps(source: Path, raw: pl.DataFrame, contract: Contract) -> pl.Series:
    """Return the times of the outcomes in microseconds since 1970 UTC; the contract's own column is in its zone."""
    own = contract.time
    column = Column(name=own.name if own else _TIMESTAMP, type="datetime", time_zone="UTC")
    if own is not None and _TIMESTAMP not in raw.columns:
        column = own
    times = _select(source, raw, _TIMESTAMP, column)
    if column.time_zone not in (*LOCAL_ZONES, "UTC"):
        zoned = times.dt.replace_time_zone(column.time_zone, ambiguous="earliest", non_existent="null")
        times = zoned.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    counts: pl.Series = times.dt.epoch("us")
    latest = counts.max()
    if isinstance(latest, int) and latest > now_us() + MAX_CLOCK_SKEW_US:
        raise DataError(
            f"{source}: the time {to_datetime(latest):%F %T} (UTC) is in the future, where no outcome is known yet; "
            f"it is {datetime.now(UTC):%F %T}"
        )
    return counts


def _build_rows(frame: pl.DataFrame, now: int) -> Iterator[list[Label]]:
    for batch in frame.iter_slices(BATCH_ROWS):
        if _METRIC in frame.columns:
            values = zip(batch[_ID], batch[_METRIC], batch[_VALUE], strict=True)
            yield [MetricValue(name, metric, now, value, now) for name, metric, value in values]
            continue
        labels = batch[_LABEL]
        if _ID in frame.columns:
            yield [Outcome(name, now, label, now) for name, label in zip(batch[_ID], labels, strict=True)]
        else:
            keys = zip(batch[_ENTITY], batch["timestamp_us"], labels, strict=True)
            yield [EntityOutcome(entity, timestamp, label, now) for entity, timestamp, label in keys]


def _check(source: Path, frame: pl.DataFrame, store: LabelStore, now: int) -> None:
    """Raise if a label of the file contradicts another of the file or of the log, or is about an unknown prediction."""
    keys, content = [_ID] if _ID in frame.columns else [_ENTITY, "timestamp_us"], _LABEL
    if _VALUE in frame.columns:
        content = _VALUE
    twice = frame.group_by(keys, maintain_order=True).agg(pl.col(content).n_unique()).filter(pl.col(content) > 1)
    if twice.height:
        raise DataError(
            f"{source} has different {content}s for the same {' and '.join(keys).removesuffix('_us')}, "
            f"{twice.height:,} times, first for '{twice[keys[0]][0]}'; nothing was imported"
        )
    try:
        for rows in _build_rows(frame, now):
            store.find_new(rows)
    except (LabelConflict, UnknownPredictions) as error:
        raise DataError(f"{source}: {_describe(error)}; nothing was imported") from None


def _check_entities(source: Path, frame: pl.DataFrame, settings: Settings, contract: Contract) -> None:
    entities: Sequence[str] = frame[_ENTITY].unique(maintain_order=True).to_list()
    if entities and not Reader(settings.prediction_log).has_any_entity(entities):
        named = (
            f"the contract's column '{contract.id.name}'" if contract.id else "an id column, which the contract lacks"
        )
        raise DataError(
            f"{source}: no logged prediction is about any of its {len(entities):,} entities, first '{entities[0]}'; "
            f"the log takes a prediction's entity from {named}; nothing was imported"
        )


def _describe(error: LabelConflict | UnknownPredictions) -> str:
    named = ", ".join(f"'{name}'" for name in error.ids[:3])
    more = f" and {len(error.ids) - 3:,} more" if len(error.ids) > 3 else ""
    if isinstance(error, LabelConflict):
        return f"the log has another label or value for {named}{more}, and the first is kept"
    return f"no logged prediction has the id {named}{more}"
