"""Stage 3: one table into train, validation and test, by time."""

from datetime import datetime, time, timedelta
from typing import Any

import polars as pl

from .. import stage
from ..contract import Contract
from ..errors import ConfigError, DataError
from ..files import read_json, sha256_file, write_json
from ..params import Params, SplitParams
from . import tables


def split(
    table: pl.DataFrame, contract: Contract, params: SplitParams, until: datetime | None
) -> dict[str, pl.DataFrame]:
    """Test is the last `test_days`, validation the `validation_days` before those, train the rest.

    Days are counted back from `until`, or from the midnight after the last row where that is earlier.
    No row of an earlier part is later than a row of a later one, so a model is judged on its future.

    Raises:
        ConfigError: the contract has no time column.
        DataError: a part would be empty.
    """
    if contract.time is None:
        raise ConfigError(
            "contract.yaml: the split is by time, and no column has role time; give it to a datetime column"
        )
    moment = pl.col(contract.time.name)
    moments = table[contract.time.name]
    last = moments.max()
    assert isinstance(last, datetime)
    test_from = datetime.combine(last.date(), time.min) - timedelta(days=params.test_days - 1)
    if until is not None:
        test_from = min(test_from, until - timedelta(days=params.test_days))
    validation_from = test_from - timedelta(days=params.validation_days)
    parts = {
        "train": table.filter(moment < validation_from),
        "validation": table.filter((moment >= validation_from) & (moment < test_from)),
        "test": table.filter(moment >= test_from),
    }
    for name, part in parts.items():
        if part.is_empty():
            raise DataError(
                f"the {name} part is empty: the table spans {tables.span(moments)}, and params.yaml keeps "
                f"{params.validation_days} days for validation and {params.test_days} for the test; lower them"
            )
    return parts


def main() -> None:
    """Read the table that was validated, cut it, write the parts."""
    contract, params = Contract.load(stage.CONTRACT), Params.load(stage.PARAMS)
    table = tables.read_verified(stage.TABLE, read_json(stage.REPORTS / "validation.json")["sha256"])
    parts = split(table, contract, params.split, params.data.until)
    report: dict[str, Any] = {}
    for name, part in parts.items():
        tables.write(part, stage.SPLITS[name])
        report[name] = {"rows": part.height, "sha256": sha256_file(stage.SPLITS[name]), **_span(part, contract)}
    write_json(stage.REPORTS / "split.json", report)


def _span(part: pl.DataFrame, contract: Contract) -> dict[str, str]:
    assert contract.time is not None
    moments = part[contract.time.name]
    return {"first": str(moments.min()), "last": str(moments.max())}


if __name__ == "__main__":
    stage.run(main)
