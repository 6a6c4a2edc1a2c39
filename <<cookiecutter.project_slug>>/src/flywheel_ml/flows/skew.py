"""Detects training/serving skew: replays logged requests through the batch path and compares bit for bit."""

import json
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core import paths
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.flows import scoring
from flywheel_ml.flows.bundles import open_bundle_of
from flywheel_ml.prediction_log import LoggedPrediction, Prediction, Reader
from flywheel_ml.utils import formatting
from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import write_json

if TYPE_CHECKING:
    from flywheel_ml.model.registration.registry import Registry

REPORT = paths.REPORTS / "skew.json"
MAX_LISTED = 20
_CHUNK_ROWS = 1000


class Difference(NamedTuple):
    """A value of a logged prediction that the batch path does not return."""

    id: str
    model_version: str
    column: str
    logged: Any
    batch: Any


class Skew(NamedTuple):
    """Result of a replay.

    Attributes:
        compared: rows that were replayed, by model version.
        skipped: why rows were not replayed → how many.
        differences: all differences, in the order of the sample.
    """

    compared: Mapping[str, int]
    skipped: Mapping[str, int]
    differences: tuple[Difference, ...]


class SkewError(ProjectError):
    """The batch path returns other outputs than those that were logged."""


def check_skew(
    project: Project,
    settings: Settings,
    connect: Callable[[], "Registry"],
    rows: int = 1000,
    since_us: int = 0,
    seed: int = 0,
) -> Skew:
    """Replay a random sample of logged requests, each with the bundle that answered it, and write the report.

    Args:
        project: the project, whose features the bundles need.
        settings: the locations of the log and the serving folder.
        connect: opens the registry; called only if the serving folder lacks a bundle.
        rows: most rows to replay.
        since_us: only predictions from this time on, in microseconds since 1970 UTC.
        seed: seed of the sample.

    Raises:
        ProjectError: the log has no prediction of a model since then, or none of their bundles is available.
    """
    sample = _draw(Reader(settings.prediction_log).predictions(since_us), rows, seed)
    if not sample:
        raise ProjectError("the prediction log has no prediction to replay; send requests first, or an earlier --since")
    compared: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    found: list[Difference] = []
    groups: dict[tuple[str, str | None], list[Prediction]] = defaultdict(list)
    for row in sample:
        if row.degraded:  # The class prior or a fallback answered.
            skipped["a fallback answered"] += 1
        else:
            groups[row.model_version, row.model_digest].append(row)
    for (version, _), some in groups.items():
        try:
            bundle = open_bundle_of(project, some[0], settings, connect)
        except ProjectError as error:
            skipped[str(error)] += len(some)
            continue
        found += compare(some, replay(some, bundle), bundle.contract)
        compared[version] += len(some)
    if not compared:
        raise ProjectError(f"no row could be replayed: {'; '.join(skipped)}")
    done = Skew(dict(compared), dict(skipped), tuple(found))
    write_json(REPORT, _to_dict(done))
    return done


def raise_if_skewed(found: Skew) -> None:
    """Raise a `SkewError` that names the first ids and the columns, if there is any difference."""
    if not found.differences:
        return
    ids = list(dict.fromkeys(one.id for one in found.differences))
    columns = ", ".join(sorted({one.column for one in found.differences}))
    named = ", ".join(ids[:3]) + (f" and {len(ids) - 3:,} more" if len(ids) > 3 else "")
    raise SkewError(
        f"{len(ids):,} of {sum(found.compared.values()):,} logged predictions differ from the batch path in {columns}: "
        f"{named}; see {REPORT}, and compare the installed libraries with the bundle's manifest.json"
    )


def replay(rows: Sequence[Prediction], bundle: Bundle) -> pl.DataFrame:
    """Score the logged inputs with batch scoring, from a Parquet file to a Parquet file."""
    inputs = [json.loads(row.inputs) for row in rows]
    frame = pl.DataFrame({column.name: _build_series(column, inputs) for column in bundle.contract.inputs})
    with TemporaryDirectory() as scratch:
        source, output = Path(scratch, "logged.parquet"), Path(scratch, "scored.parquet")
        tables.write(frame, source)
        scoring.score_to_file(source, output, bundle, rows[0].model_version, _CHUNK_ROWS, int)
        return pl.read_parquet(output, memory_map=False)


def compare(rows: Sequence[Prediction], scored: pl.DataFrame, contract: Contract) -> Iterator[Difference]:
    """Yield every value of the log that is not equal to the last bit to the batch path's."""
    for row, batch in zip(rows, scored.iter_rows(named=True), strict=True):
        expected = _expect(batch, contract)
        logged = _flatten(row, contract)
        for column, value in expected.items():
            if not _has_same_bits(logged.get(column), value):
                yield Difference(row.id, row.model_version, column, logged.get(column), value)


def _draw(rows: Iterator[LoggedPrediction], size: int, seed: int) -> list[Prediction]:
    """Draw a sample without replacement in one pass (Vitter 1985, "Random Sampling with a Reservoir", algorithm R)."""
    rng = np.random.default_rng(seed)
    drawn: list[Prediction] = []
    for at, row in enumerate(rows):
        if at < size:
            drawn.append(row.prediction)
        elif (place := int(rng.integers(at + 1))) < size:
            drawn[place] = row.prediction
    return drawn


def _build_series(column: Column, inputs: Sequence[Mapping[str, Any]]) -> pl.Series:
    values = [row.get(column.name) for row in inputs]
    if column.type == "datetime":
        values = [None if value is None else datetime.fromisoformat(value) for value in values]
    return pl.Series(column.name, values, dtype=tables.DTYPES[column.type], strict=False)


def _expect(batch: Mapping[str, Any], contract: Contract) -> dict[str, Any]:
    """Return what the log should hold for a row of the batch path's output."""
    found = {name: batch[name] for name in (scoring.PREDICTION, scoring.SCORE)}
    if contract.task == "multiclass":
        found |= {f"probabilities[{place}]": value for place, value in enumerate(batch[scoring.PROBABILITIES])}
    elif contract.task == "binary":
        found["probabilities[1]"] = batch[scoring.SCORE]
    else:
        found |= {"interval[0]": batch[scoring.LOW], "interval[1]": batch[scoring.HIGH]}
    return found


def _flatten(row: Prediction, contract: Contract) -> dict[str, Any]:
    output = json.loads(row.output)
    found = {scoring.PREDICTION: output.get("prediction"), scoring.SCORE: row.score}
    name = "probabilities" if contract.classes else "interval"
    values = output.get(name) or ()
    values = values.values() if isinstance(values, dict) else values
    return found | {f"{name}[{place}]": value for place, value in enumerate(values)}


def _has_same_bits(logged: Any, batch: Any) -> bool:
    if isinstance(batch, float) and isinstance(logged, int | float) and not isinstance(logged, bool):
        return struct.pack("<d", logged) == struct.pack("<d", batch)
    return type(logged) is type(batch) and bool(logged == batch)


def _to_dict(found: Skew) -> dict[str, Any]:
    return {
        "compared": dict(found.compared),
        "skipped": dict(found.skipped),
        "differences": len(found.differences),
        "rows": len({one.id for one in found.differences}),
        "columns": dict(Counter(one.column for one in found.differences)),
        "first": [{**one._asdict(), "logged": str(one.logged), "batch": str(one.batch)} for one in found.differences][
            :MAX_LISTED
        ],
    }


def describe(found: Skew) -> Iterator[str]:
    """Yield one line for each reason why rows were skipped, then one about the compared rows."""
    for reason, count in found.skipped.items():
        yield f"{formatting.rows(count)} not replayed: {reason}"
    versions = ", ".join(f"version {name} ({count:,})" for name, count in found.compared.items())
    same = "all equal to the last bit" if not found.differences else f"{len(found.differences):,} values differ"
    yield f"{formatting.rows(sum(found.compared.values()))} replayed through batch scoring: {versions}; {same}"
