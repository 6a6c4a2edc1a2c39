"""Searches reports, logs and the bundle's texts for personal data, and tables for erased entities."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import privacy, tables
from flywheel_ml.prediction_log.retention import tombstones
from flywheel_ml.prediction_log.retention.log import Log

MAX_BYTES = 5_000_000
_SUFFIXES = frozenset((".json", ".jsonl", ".md", ".html", ".txt", ".log", ".csv"))


class PersonalData(NamedTuple):
    """What was found.

    Attributes:
        files: number of searched files.
        found: file → kind → how often.
        erased: number of remembered erasures.
        returned: table → rows of erased entities that are in it again.
    """

    files: int
    found: Mapping[str, Counter[str]]
    erased: int
    returned: Mapping[str, int]


def search(settings: Settings, contract: Contract, params: Params) -> PersonalData:
    """Search reports, `var/` and the bundle's texts; and the tables, if anyone was erased."""
    files = list(_list_files())
    values: list[str] = []
    if any(column.personal for column in contract.columns) and paths.TABLE.is_file():
        values = privacy.collect_values(tables.read(paths.TABLE, contract), contract)
    found = {path.as_posix(): counts for path, counts in privacy.scan_files(files, values).items()}
    stones = tombstones.read(Log.of_settings(settings).folder)
    returned = {}
    if stones.keys and contract.id is not None:
        for path in (params.data.raw, paths.TABLE, *paths.SPLITS.values()):
            if path.is_file() and (rows := stones.count(_read_keys(path, contract))):
                returned[path.as_posix()] = rows
    return PersonalData(len(files), found, len(stones.keys), returned)


def _list_files() -> Iterator[Path]:
    for folder in (paths.REPORTS, paths.BUNDLE, Path("var")):
        for path in sorted(folder.rglob("*")):
            is_own = path.name in ("ml-test-score.json", "ml-test-score.md", "attacks.json", "erased.json")
            if path.suffix in _SUFFIXES and not is_own and path.is_file() and path.stat().st_size <= MAX_BYTES:
                yield path


def _read_keys(path: Path, contract: Contract) -> list[str]:
    assert contract.id is not None
    keys: pl.Series = tables.read(path, contract)[contract.id.name]
    return keys.cast(pl.String).drop_nulls().to_list()
