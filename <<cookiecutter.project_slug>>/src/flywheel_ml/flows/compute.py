"""Records what the gates measured and what the run cost, and keeps the baseline of computing performance."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from flywheel_ml.core import bundle, paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.flows.progress import Progress
from flywheel_ml.model.evaluation.candidate import Candidate
from flywheel_ml.model.evaluation.compute import ComputeFigures, run_calibration_loop
from flywheel_ml.utils.config_model import StrictModel
from flywheel_ml.utils.files import read_json, sha256_file, write_json
from flywheel_ml.utils.process import get_children_peak_mb

Model = TypeVar("Model", bound=StrictModel)


class Measurements(StrictModel):
    """What was measured of a bundle, outside of it; see `Candidate`.

    Attributes:
        digest: sha256 of its manifest.
        model_sha256: that of its model; while it is the same, so is the training.
    """

    at: datetime
    digest: str
    latency_ms: float
    size_mb: float
    feature_us: dict[str, float]
    unstable: tuple[str, ...]
    compute: ComputeFigures
    model_sha256: str = ""


def record_measurements(candidate: Candidate, contract: Contract, progress: Progress) -> Measurements:
    """Write var/measured.json, and the baseline if there is none of this table and estimator."""
    digest = sha256_file(paths.BUNDLE / bundle.MANIFEST)
    before = read_measurements()
    model = candidate.manifest.files[bundle.MODEL]
    known = before.compute if before and (before.digest == digest or before.model_sha256 == model) else None
    trained = progress.cpu_seconds.get("train", 0.0)
    rows = candidate.manifest.rows["train"]
    figures = ComputeFigures(
        key=f"{contract.name}: {candidate.manifest.estimator}",
        calibration_ms=run_calibration_loop(),
        latency_cpu_ms=candidate.latency_cpu_ms or 0.0,
        train_cpu_us=trained * 1e6 / rows if trained > 0 else (known.train_cpu_us if known else None),
        peak_mb=get_children_peak_mb() if trained > 0 else (known.peak_mb if known else None),
    )
    found = Measurements(
        at=datetime.now(UTC),
        digest=digest,
        latency_ms=candidate.latency_ms or 0.0,
        size_mb=candidate.size_mb or 0.0,
        feature_us=dict(candidate.feature_us or {}),
        unstable=candidate.unstable or (),
        compute=figures,
        model_sha256=model,
    )
    write_json(paths.MEASURED, found.model_dump(mode="json"))
    baseline = read_baseline()
    if baseline is None or baseline.key != figures.key:
        write_json(paths.COMPUTE_BASELINE, figures.model_dump(mode="json"))
    return found


def read_measurements() -> Measurements | None:
    """Read var/measured.json; None if it is missing or damaged."""
    return _read(paths.MEASURED, Measurements)


def read_baseline() -> ComputeFigures | None:
    """Read compute_baseline.json; None if it is missing or damaged."""
    return _read(paths.COMPUTE_BASELINE, ComputeFigures)


def _read(path: Path, model: type[Model]) -> Model | None:
    try:
        return model.model_validate(read_json(path), strict=False)
    except (OSError, ValueError, ValidationError):
        return None
