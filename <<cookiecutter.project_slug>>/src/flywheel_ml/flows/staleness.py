"""Evaluates registered versions on newer and newer labelled rows, and plots how fast their quality decays."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.bundle import LINEAGE, Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.data import tables
from flywheel_ml.monitoring.performance.staleness import (
    AgedVersion,
    Staleness,
    cut_periods,
    find_last_row,
    measure_windows,
)
from flywheel_ml.monitoring.performance.staleness_page import render_page
from flywheel_ml.monitoring.quality import DECIDING_METRIC
from flywheel_ml.utils.errors import ConfigError, DataError, ProjectError
from flywheel_ml.utils.files import canonical_json, read_json, replacing

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry, Version

FOLDER = paths.REPORTS / "staleness"


def measure_staleness(
    project: Project, registry: "Registry", params: Params, days: int = 30, most: int = 10
) -> Staleness:
    """Measure the newest versions on the labelled rows of the raw table, and write the page and its JSON.

    Args:
        project: the project, whose features the bundles need.
        registry: where the versions are.
        params: the raw table, smallest number of labels, and the confidence level.
        days: length of a window.
        most: how many of the newest versions.

    Raises:
        ConfigError: the contract has no time column, or there would be too many windows.
        DataError: the table has no labelled row that is newer than the data of a version.
        ProjectError: no registered version can be used.
    """
    contract = Contract.load(paths.CONTRACT)
    if contract.time is None:
        raise ConfigError("contract.yaml: no column has role time, so rows have no age; give the role to a datetime")
    table = tables.read(params.data.raw, contract)
    for column in (contract.time, contract.target):
        if column.name not in table.columns:
            raise DataError(f"{params.data.raw} has no column '{column.name}'; staleness needs times and labels")
    table = table.drop_nulls([contract.time.name, contract.target.name])
    newest = table[contract.time.name].max()
    if not isinstance(newest, datetime):
        raise DataError(f"{params.data.raw} has no labelled row with a timestamp in '{contract.time.name}'")
    skipped: dict[str, str] = {}
    with TemporaryDirectory() as scratch:
        opened = _open_versions(project, registry, Path(scratch), most, skipped)
        if not opened:
            reasons = "; ".join(f"version {name}: {why}" for name, why in skipped.items()) or "none is registered"
            raise ProjectError(f"no version of '{registry.name}' can be measured ({reasons}); train one with `run`")
        first = min(last_row for _, _, last_row in opened)
        if newest <= first:
            raise DataError(
                f"the newest labelled row of {params.data.raw} is of {newest:%F %T}, and every version saw rows until "
                f"{first:%F %T} or later; add newer rows to measure how they age"
            )
        periods = cut_periods(first, newest, days)
        versions = _measure(registry, opened, table, periods, params, skipped)
    if not versions:
        raise ProjectError("; ".join(f"version {name} cannot be measured: {why}" for name, why in skipped.items()))
    found = Staleness(
        at=datetime.now(UTC),
        name=registry.name,
        metric=DECIDING_METRIC[contract.task],
        days=days,
        confidence=params.monitor.confidence_level,
        versions=tuple(versions),
        skipped=skipped,
    )
    _write(found)
    return found


def _open_versions(
    project: Project, registry: "Registry", scratch: Path, most: int, skipped: dict[str, str]
) -> list[tuple["Version", Bundle, datetime]]:
    """Download the newest versions, each bundle once, with the time of the newest row that it saw."""
    opened: list[tuple[Version, Bundle, datetime]] = []
    digests: set[str] = set()
    for version in registry.list_versions():
        if len(opened) == most or version.digest in digests:
            continue
        path = scratch / version.number
        try:
            registry.download(version, path)
            bundle = Bundle.open(path, version.digest, project.features)
        except ProjectError as error:
            skipped[version.number] = str(error).replace(str(path), "its bundle")
            continue
        lineage = read_json(path / LINEAGE) if (path / LINEAGE).is_file() else {}
        last_row = find_last_row(bundle, lineage.get("last_row_at"))
        if last_row is None:
            skipped[version.number] = "the time of its newest row is unknown"
            continue
        digests.add(version.digest)
        opened.append((version, bundle, last_row))
    return opened


def _measure(
    registry: "Registry",
    opened: list[tuple["Version", Bundle, datetime]],
    table: pl.DataFrame,
    periods: list[tuple[datetime, datetime]],
    params: Params,
    skipped: dict[str, str],
) -> list[AgedVersion]:
    roles = {found.number: role for role in ("challenger", "champion") if (found := registry.find_alias(role))}
    versions = []
    for version, bundle, last_row in opened:
        try:
            windows = measure_windows(bundle, table, last_row, periods, params.monitor)
        except ProjectError as error:
            skipped[version.number] = str(error)
            continue
        tested = bundle.manifest.metrics.get("test", {}).get(DECIDING_METRIC[bundle.manifest.task])
        versions.append(
            AgedVersion(
                version=version.number,
                role=roles.get(version.number, ""),
                estimator=bundle.manifest.estimator,
                last_row_at=last_row,
                tested=tested,
                windows=windows,
            )
        )
    return versions


def _write(found: Staleness) -> None:
    texts = {"json": canonical_json(found.model_dump(mode="json"), indent=2) + "\n", "html": render_page(found)}
    for suffix, content in texts.items():
        with replacing(FOLDER / f"latest.{suffix}") as part:
            part.write_text(content, encoding="utf-8")
