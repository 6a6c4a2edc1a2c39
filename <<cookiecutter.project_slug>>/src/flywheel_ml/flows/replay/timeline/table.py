"""The table as it was known at each time of the replay: rows so far, labels that had arrived."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import polars as pl

from flywheel_ml.core.contract import Contract
from flywheel_ml.data import tables
from flywheel_ml.flows.replay.params import ReplayParams
from flywheel_ml.flows.replay.timeline.periods import Period, cut_parts, cut_periods
from flywheel_ml.utils.errors import ConfigError, DataError

_PART = "\x00part"
"""A name that no column of a table has."""


class Timeline:
    """Rows in the order of time, divided into periods and parts.

    Args:
        table: n_rows × contract columns, with a time in each row.
        contract: names the time and the target.
        params: parts, delay of the labels, and the periods for training.

    Raises:
        DataError: there are too few periods to train on some and replay others.
    """

    def __init__(self, table: pl.DataFrame, contract: Contract, params: ReplayParams) -> None:
        assert contract.time is not None
        time = table[contract.time.name]
        first, last = time.min(), time.max()
        if not isinstance(first, datetime) or not isinstance(last, datetime) or first == last:
            raise DataError(f"'{contract.time.name}' has fewer than two different times; a replay needs a history")
        self.periods = cut_periods(first, last)
        self.trained = params.train_periods or len(self.periods) // 2
        if self.trained >= len(self.periods):
            raise ConfigError(
                f"TRAIN is {self.trained}, and the table has {len(self.periods)} periods; leave at least one to replay"
            )
        self._target, self._parts, self._delay = contract.target.name, params.parts, params.label_delay_parts
        # A number that is NaN is no label.
        known = pl.col(self._target).fill_nan(None) if contract.target.type == "float" else pl.col(self._target)
        self._edges = cut_parts(self.periods, params.parts)
        part = pl.Series(self._edges[1:-1]).cast(time.dtype).search_sorted(time, side="right")
        self._rows = table.with_columns(known, part.cast(pl.Int32).alias(_PART)).sort(
            contract.time.name, maintain_order=True
        )

    @property
    def replayed(self) -> Sequence[int]:
        """Positions of the periods to replay."""
        return range(self.trained, len(self.periods))

    def get_period(self, at: int) -> Period:
        """Return a period."""
        return self.periods[at]

    def list_parts(self, period: int) -> Sequence[int]:
        """List the parts of a period."""
        return range(period * self._parts, (period + 1) * self._parts)

    def get_rows(self, part: int) -> pl.DataFrame:
        """Return the rows of a part, with their labels."""
        return self._rows.filter(pl.col(_PART) == part).drop(_PART)

    def find_labelled_part(self, now: int) -> int:
        """Find the last part whose labels have arrived when part `now` has been sent."""
        return now - self._delay

    def find_until(self, now: int) -> datetime:
        """Find the end of the rows whose labels have arrived when part `now` has been sent.

        Raises:
            ConfigError: none has arrived.
        """
        labelled = self.find_labelled_part(now)
        if labelled < 0:
            raise ConfigError("no label arrives before the first training; lower LABEL_DELAY, or raise TRAIN")
        return self._edges[labelled + 1]

    def write_known(self, now: int, path: Path) -> None:
        """Write the rows until part `now`; labels that have not arrived are empty."""
        rows = self._rows.filter(pl.col(_PART) <= now)
        arrived = pl.when(pl.col(_PART) <= self.find_labelled_part(now)).then(pl.col(self._target))
        tables.write(rows.with_columns(arrived.alias(self._target)).drop(_PART), path)


def check_can_replay(contract: Contract) -> None:
    """Raise if rows have no time.

    Raises:
        ConfigError: no column has role time.
    """
    if contract.time is None:
        raise ConfigError(
            "contract.yaml: no column has role time, so rows have no order to replay; "
            "give the role to a datetime column and commit that (for DATA: TIME=column)"
        )


def read_timeline(path: Path, contract: Contract, params: ReplayParams) -> Timeline:
    """Read the raw table.

    Raises:
        ConfigError: no column has role time, or the table is not Parquet.
        DataError: it cannot be read, or lacks times or labels.
    """
    check_can_replay(contract)
    assert contract.time is not None
    if path.suffix.lower() != ".parquet":
        raise ConfigError(f"a replay needs a raw table in Parquet, and data.raw is {path}; convert it")
    table = tables.read(path, contract)
    for column in (contract.time, contract.target):
        if column.name not in table.columns:
            raise DataError(f"{path} has no column '{column.name}'; a replay needs times and labels")
    if table.schema[contract.time.name] != tables.DTYPES["datetime"]:
        raise DataError(f"{path}: '{contract.time.name}' has values that are no timestamps; correct them")
    return Timeline(table.drop_nulls(contract.time.name), contract, params)
