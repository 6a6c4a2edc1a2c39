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
        tables: number of tables that were searched for them.
        erased_problem: why they cannot be searched for, if so.
        unsearched: number of personal values beyond the limit, which were not searched for in the files.
    """

    files: int
    found: Mapping[str, Counter[str]]
    erased: int
    returned: Mapping[str, int]
    tables: int = 0
    erased_problem: str = ""
    unsearched: int = 0


def search(settings: Settings, contract: Contract, params: Params) -> PersonalData:
    """Search reports, `var/` and the bundle's texts; and the tables, if anyone was erased."""
    files = list(_list_files())
    values, unsearched = list[str](), 0
    if any(column.personal for column in contract.columns) and paths.TABLE.is_file():
        values, unsearched = privacy.collect_values(tables.read(paths.TABLE, contract), contract)
    found = {path.as_posix(): counts for path, counts in privacy.scan_files(files, values).items()}
    try:
        stones = tombstones.read(Log.of_settings(settings).folder)
    except ValueError as error:
        problem = f"{tombstones.FILE} of the log is damaged ({type(error).__name__})"
        return PersonalData(len(files), found, 0, {}, erased_problem=problem, unsearched=unsearched)
    searched: list[Path] = []
    returned, problem = {}, ""
    if stones.keys and contract.id is None:
        problem = f"the contract has no column with role id, so {len(stones.keys)} erased entities cannot be searched"
    elif stones.keys:
        searched = [path for path in (params.data.raw, paths.TABLE, *paths.SPLITS.values()) if path.is_file()]
        counts = {path.as_posix(): stones.count(_read_keys(path, contract)) for path in searched}
        returned = {path: rows for path, rows in counts.items() if rows}
        problem = "" if searched else f"there is no table to search for {len(stones.keys)} erased entities"
    return PersonalData(len(files), found, len(stones.keys), returned, len(searched), problem, unsearched)


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
