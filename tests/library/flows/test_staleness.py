"""Registered versions are measured on rows that are newer than their own, and rejected in one line otherwise."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core import bundle, paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.flows.staleness import FOLDER, measure_staleness
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.utils.errors import ConfigError, DataError, ProjectError
from flywheel_ml.utils.files import read_json
from library.helpers import store
from library.helpers.project import PROJECT

DAYS = 20


@pytest.fixture
def raw(folder: Path, bundle_path: Path, table: pl.DataFrame, contract: Contract) -> Path:
    """The table of the project; a contract without times skips these tests."""
    if contract.time is None:
        pytest.skip("the contract has no times")
    shutil.copyfile(bundle_path / bundle.CONTRACT, paths.CONTRACT)
    path = Path("data/raw/table.parquet")
    path.parent.mkdir(parents=True)
    tables.write(table, path)
    return path


@pytest.fixture
def settings_of_table(params: Params, raw: Path) -> Params:
    monitor = params.monitor.model_copy(update={"min_labels": 50})
    return params.model_copy(update={"data": params.data.model_copy(update={"raw": raw}), "monitor": monitor})


def find_times(table: pl.DataFrame, contract: Contract) -> tuple[datetime, datetime]:
    assert contract.time is not None
    first, last = table[contract.time.name].min(), table[contract.time.name].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    return first, last


def register(registry: Registry, path: Path, last_row_at: datetime | None) -> None:
    lineage: dict[str, Any] = {"last_row_at": str(last_row_at)} if last_row_at else {}
    registry.register(path, store.PASSED_CHECKS, {}, lineage, [])


def test_each_version_is_measured_on_rows_newer_than_its_own(
    registry: Registry,
    settings_of_table: Params,
    bundle_path: Path,
    tmp_path: Path,
    table: pl.DataFrame,
    contract: Contract,
) -> None:
    first, last = find_times(table, contract)
    middle = first + (last - first) / 2
    register(registry, bundle_path, first + timedelta(days=5))
    register(registry, store.copy_with_new_card(bundle_path, tmp_path / "second"), middle)
    found = measure_staleness(PROJECT, registry, settings_of_table, DAYS)
    newer, older = found.versions
    assert (newer.version, older.version) == ("2", "1")
    assert (newer.last_row_at, older.last_row_at) == (middle, first + timedelta(days=5))
    assert sum(window.rows for window in newer.windows) == table.filter(pl.col(contract.time.name) > middle).height  # type: ignore[union-attr]
    assert newer.windows[-1].value == older.windows[-1].value
    ages = [window.age_days for window in older.windows]
    assert ages == sorted(ages)
    assert np.diff(ages[:3]) == pytest.approx([DAYS, DAYS], abs=3)
    assert older.windows[-1].age_days > newer.windows[-1].age_days > 0
    for window in older.windows:
        assert window.value is None or (window.low or 0) <= window.value <= (window.high or 0)
    assert read_json(FOLDER / "latest.json")["versions"][0]["version"] == "2"
    page = (FOLDER / "latest.html").read_text()
    assert page.count('class="curve v0"') == 2
    assert "version 1" in page


def test_unusable_version_is_skipped_with_its_reason(
    registry: Registry, settings_of_table: Params, bundle_path: Path, table: pl.DataFrame, contract: Contract
) -> None:
    first, _ = find_times(table, contract)
    register(registry, bundle_path, first)
    registry.register(bundle_path, store.FAILED_CHECKS, {}, {"last_row_at": str(first)}, [])
    found = measure_staleness(PROJECT, registry, settings_of_table, DAYS)
    assert len(found.versions) == 1  # Both versions have one bundle.
    damaged = next(Path("mlartifacts").rglob(bundle.MODEL))
    for path in Path("mlartifacts").rglob(bundle.MODEL):
        path.write_bytes(b"another")
    assert damaged.is_file()
    with pytest.raises(ProjectError, match=r"no version of 'small' can be measured \(version 2: .* was changed"):
        measure_staleness(PROJECT, registry, settings_of_table, DAYS)


def test_version_without_lineage_uses_its_test_rows(
    registry: Registry, settings_of_table: Params, bundle_path: Path, table: pl.DataFrame, contract: Contract
) -> None:
    register(registry, bundle_path, None)
    _, last = find_times(table, contract)
    assert contract.time is not None
    later = table.with_columns(pl.col(contract.time.name) + timedelta(days=40))
    tables.write(later, settings_of_table.data.raw)
    (found,) = measure_staleness(PROJECT, registry, settings_of_table, DAYS).versions
    assert abs(found.last_row_at - last) <= timedelta(days=1)


def test_table_without_newer_rows_is_an_error(
    registry: Registry, settings_of_table: Params, bundle_path: Path, table: pl.DataFrame, contract: Contract
) -> None:
    _, last = find_times(table, contract)
    register(registry, bundle_path, last)
    with pytest.raises(
        DataError, match=r"the newest labelled row of .* every version saw rows until .*; add newer rows"
    ):
        measure_staleness(PROJECT, registry, settings_of_table, DAYS)
    assert not FOLDER.exists()


def test_registry_without_versions_is_an_error(registry: Registry, settings_of_table: Params) -> None:
    with pytest.raises(ProjectError, match=r"no version of 'small' can be measured \(none is registered\); train one"):
        measure_staleness(PROJECT, registry, settings_of_table, DAYS)


def test_contract_without_time_is_an_error(registry: Registry, settings_of_table: Params) -> None:
    paths.CONTRACT.write_text(
        "name: small\ncolumns:\n  - {name: x, type: float}\n  - {name: y, type: boolean, role: target}\n"
    )
    with pytest.raises(ConfigError, match="no column has role time, so rows have no age"):
        measure_staleness(PROJECT, registry, settings_of_table, DAYS)


def test_too_short_windows_are_an_error(
    registry: Registry, settings_of_table: Params, bundle_path: Path, table: pl.DataFrame, contract: Contract
) -> None:
    first, last = find_times(table, contract)
    register(registry, bundle_path, first - 200 * (last - first))
    with pytest.raises(ConfigError, match=r"--days is 1, which gives .* windows; at most 120 are drawn"):
        measure_staleness(PROJECT, registry, settings_of_table, 1)
