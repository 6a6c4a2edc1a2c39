"""Stage 3: splits the table into train, validation and test, by time or by hash."""

import hashlib
import zlib
from collections.abc import Callable
from datetime import datetime, time, timedelta
from typing import Any

import numpy as np
import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import SplitParams
from flywheel_ml.core.project import Project
from flywheel_ml.data import tables
from flywheel_ml.utils.errors import ConfigError, DataError
from flywheel_ml.utils.files import read_json, sha256_file, write_json

_SALT = b"split:"
MAX_REPEATED_SHARE = 0.05
"""Up to this share of rows with repeated inputs, repeated rows stay together regardless of label."""
MAX_DUPLICATE_SHARE = 0.01
"""Up to this share of duplicates per average row, duplicates stay together."""
MIN_MIXED_SHARE = 0.1
"""From this share of differing labels among equal rows, relative to chance, equal rows are not copies."""


def split(
    table: pl.DataFrame, contract: Contract, params: SplitParams, until: datetime | None
) -> dict[str, pl.DataFrame]:
    """Split into train, validation and test, each in the table's order.

    By time, test is the most recent part and validation the one before it, so the model is evaluated on later rows: the
    last `test_days` and the `validation_days` before those, counted back from `until` or from the midnight after
    the last row, where that is earlier; or shares of the rows. No row of an earlier part is later than one of a
    later part.

    By hash, a row's part follows from its group, its id, or else its inputs. Rows of one group and copies of one row
    stay together, and a row keeps its part when rows are added. Without a group, each class is split separately. The
    hash excludes the target: otherwise equal inputs with opposite labels would go to different parts. If equal inputs
    are coincidence rather than copies (few and coarse columns), each such row is placed independently.

    Raises:
        ConfigError: the columns it needs are not in the contract.
        DataError: a part would be empty.
    """
    part_index = (
        _split_by_time(table, contract, params, until)
        if params.by == "time"
        else _split_by_hash(table, contract, params)
    )
    parts = {name: table.filter(part_index == at) for at, name in enumerate(("train", "validation", "test"))}
    for name, part in parts.items():
        if part.is_empty():
            kept = (
                f"{params.validation_days} days for validation and {params.test_days} for the test"
                if params.test_days
                else f"{params.validation_share:.0%} for validation and {params.test_share:.0%} for the test"
            )
            raise DataError(
                f"the {name} part is empty: the table has {table.height:,} rows{_describe_span(table, contract)}, "
                f"and params.yaml keeps {kept}; change split there"
            )
    return parts


def count_test_rows_in_train(parts: dict[str, pl.DataFrame], contract: Contract) -> int:
    """Count the test rows that equal a training row in the target and all inputs except the time.

    A model that memorises scores well on them. With few and coarse inputs, most test rows are duplicates anyway.
    """
    names = [contract.target.name, *(column.name for column in contract.inputs if column.role != "time")]
    if len(names) == 1:
        return 0
    train_hashes, test_hashes = (parts[name].select(names).hash_rows() for name in ("train", "test"))
    return int(test_hashes.is_in(train_hashes.implode()).sum())


def describe_time_range(part: pl.DataFrame, contract: Contract) -> dict[str, str]:
    """The first and last timestamp of a part; empty without a time column."""
    if contract.time is None:
        return {}
    times = part[contract.time.name]
    return {"first": str(times.min()), "last": str(times.max())}


def _split_by_time(table: pl.DataFrame, contract: Contract, params: SplitParams, until: datetime | None) -> pl.Series:
    if contract.time is None:
        raise ConfigError(
            "contract.yaml: the split is by time, and no column has role time; "
            "give it to a datetime column, or split `by: hash` in params.yaml"
        )
    times = table[contract.time.name]
    last = times.max()
    assert isinstance(last, datetime)
    if params.test_days is not None and params.validation_days is not None:
        test_from = datetime.combine(last.date(), time.min) - timedelta(days=params.test_days - 1)
        if until is not None:
            test_from = min(test_from, contract.to_time_zone(until) - timedelta(days=params.test_days))
        validation_from = test_from - timedelta(days=params.validation_days)
    else:
        ordered = times.sort()
        test_from = ordered[int(len(ordered) * (1 - params.test_share))]
        validation_from = ordered[int(len(ordered) * (1 - params.test_share - params.validation_share))]
    return (times >= validation_from).cast(pl.Int8) + (times >= test_from).cast(pl.Int8)


def _split_by_hash(table: pl.DataFrame, contract: Contract, params: SplitParams) -> pl.Series:
    if params.group is not None:
        drawn = hash_to_unit_interval(table[contract[params.group].name])
    else:
        drawn = (
            hash_to_unit_interval(table[contract.id.name])
            if contract.id
            else hash_to_unit_interval(_build_keys(table, contract), _hash_blake2)
        )
        if contract.classes:
            # The hash's rank within its class, in (0, 1]: each class is shared out alike, however rare it is.
            rank = (pl.col("drawn").rank("max") / pl.len()).over("class")
            drawn = pl.DataFrame({"drawn": drawn, "class": table[contract.target.name]}).select(rank).to_series()
    thresholds = (1 - params.test_share - params.validation_share, 1 - params.test_share)
    return (drawn > thresholds[0]).cast(pl.Int8) + (drawn > thresholds[1]).cast(pl.Int8)


def _build_keys(table: pl.DataFrame, contract: Contract) -> pl.Series:
    """The inputs of each row as text; if equal ones are not copies, all but the first also get a number."""
    texts = (pl.col(column.name).cast(pl.String).fill_null("\x00") for column in contract.inputs)
    rows = table.select(pl.concat_str(*texts, separator="\x1f").alias("key"), label=pl.col(contract.target.name))
    if not _is_repeated_by_chance(rows, is_class=bool(contract.classes)):
        return rows["key"]
    number = pl.int_range(pl.len()).over("key")
    numbered = pl.concat_str("key", number.cast(pl.String), separator="\x1e")
    return rows.select(pl.when(number > 0).then(numbered).otherwise("key")).to_series()


def _is_repeated_by_chance(rows: pl.DataFrame, is_class: bool) -> bool:
    """Whether rows with an equal `key` are separate observations, judging by their `label`, and not copies."""
    sizes = rows.group_by("key").agg(size=pl.len(), labels=pl.col("label").n_unique()).filter(pl.col("size") > 1)
    size, n_rows = sizes["size"].to_numpy(), rows.height
    if size.sum() <= MAX_REPEATED_SHARE * n_rows:
        return False
    if (size.astype(np.float64) ** 2).sum() > MAX_DUPLICATE_SHARE * n_rows**2:
        return True
    mixed = size[sizes["labels"].to_numpy() > 1].sum()
    # The subtracted term is the probability that m rows with random labels all share one label.
    shares = (rows["label"].value_counts()["count"] / n_rows).to_numpy() if is_class else np.zeros(1)
    alike, times = np.unique(size, return_counts=True)
    expected = (alike * times * (1 - (shares[:, None] ** alike).sum(axis=0))).sum()
    return bool(mixed >= MIN_MIXED_SHARE * expected)


def hash_to_unit_interval(keys: pl.Series, hashed: Callable[[bytes], int] = zlib.crc32) -> pl.Series:
    """Hash each key to a number in [0, 1), the same in every version of every library."""
    hashes = (hashed(_SALT + key.encode()) for key in keys.cast(pl.String).fill_null("").to_list())
    return pl.Series(np.fromiter(hashes, dtype=np.uint32, count=len(keys)) / 2**32)


def _hash_blake2(key: bytes) -> int:
    """A hash for keys that differ in little: the CRCs of `a1 a2 … b1 b2 …` are one pattern, shifted for each letter."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")


def _describe_span(table: pl.DataFrame, contract: Contract) -> str:
    return f" from {tables.describe_span(table[contract.time.name])}" if contract.time else ""


def main(project: Project) -> None:
    """Read the validated table, split it, and write the parts."""
    contract, params = Contract.load(paths.CONTRACT), project.load_params()
    table = tables.read_verified(paths.TABLE, read_json(paths.REPORTS / "validation.json")["sha256"])
    parts = split(table, contract, params.split, params.data.until)
    report: dict[str, Any] = {}
    for name, part in parts.items():
        tables.write(part, paths.SPLITS[name])
        report[name] = {
            "rows": part.height,
            "sha256": sha256_file(paths.SPLITS[name]),
            **describe_time_range(part, contract),
        }
    report["test"]["in_train"] = count_test_rows_in_train(parts, contract)
    write_json(paths.REPORTS / "split.json", report)
