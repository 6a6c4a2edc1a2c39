"""Stage 1: reads the raw table and keeps the rows that are in time and have a label."""

from datetime import datetime
from typing import NamedTuple

import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.project import Project
from flywheel_ml.data import tables
from flywheel_ml.data.upstream_schema import read_schema
from flywheel_ml.utils.errors import ConfigError, DataError
from flywheel_ml.utils.files import sha256_file, write_json


class IngestResult(NamedTuple):
    """The table, and how many rows were dropped: later than `until`, and unlabelled."""

    table: pl.DataFrame
    later: int
    unlabelled: int


def ingest(raw: pl.DataFrame, contract: Contract, until: datetime | None) -> IngestResult:
    """Keep the rows before `until` that have a label, sorted by time and id.

    Columns that are missing, mistyped or not in the contract are kept; `validate` reports them.

    Raises:
        ConfigError: `until` is given but the contract has no time column.
        DataError: no row is left.
    """
    if until is not None and contract.time is None:
        raise ConfigError("params.yaml: data.until needs a column with role time in contract.yaml; drop it or add one")
    table = raw
    until = until and contract.to_time_zone(until)
    if until is not None and contract.time and raw.schema.get(contract.time.name) == tables.DTYPES["datetime"]:
        time = pl.col(contract.time.name)
        table = table.filter(time.is_null() | (time < until))
    labelled = table.drop_nulls(contract.target.name) if contract.target.name in table.columns else table
    keys = [column.name for column in (contract.time, contract.id) if column and column.name in table.columns]
    ordered = labelled.sort(keys, maintain_order=True) if keys else labelled
    if ordered.is_empty():
        raise DataError(
            f"no row is left of {raw.height:,}: {raw.height - table.height:,} are not before data.until ({until}), "
            f"{table.height:,} have no label in '{contract.target.name}'"
        )
    return IngestResult(ordered, raw.height - table.height, table.height - labelled.height)


def main(project: Project) -> None:
    """Read the raw table, drop late and unlabelled rows, and write the rest."""
    contract, params = Contract.load(paths.CONTRACT), project.load_params()
    done = ingest(tables.read(params.data.raw, contract), contract, params.data.until)
    tables.write(done.table, paths.TABLE)
    write_json(
        paths.REPORTS / "ingest.json",
        {
            "rows": done.table.height,
            "columns": dict(read_schema(params.data.raw)),
            "rows_after_until": done.later,
            "rows_without_label": done.unlabelled,
            "sha256": sha256_file(paths.TABLE),
        },
    )
