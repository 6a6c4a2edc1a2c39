"""Figures of a training count for as long as its model is the same."""

import shutil
from pathlib import Path

import pytest

from flywheel_ml.core import bundle, paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.flows.compute import Measurements, record_measurements
from flywheel_ml.flows.progress import Progress
from flywheel_ml.model.evaluation.candidate import Candidate


def record(contract: Contract, trained_seconds: float = 0.0) -> Measurements:
    progress = Progress()
    progress.cpu_seconds["train"] = trained_seconds
    return record_measurements(Candidate(bundle.verify(paths.BUNDLE)), contract, progress)


def test_training_figures_stay_while_the_model_is_the_same(
    tmp_path: Path, bundle_path: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle_path, paths.BUNDLE)
    first = record(contract, trained_seconds=2.0)
    assert first.compute.train_cpu_us is not None
    manifest = bundle.verify(paths.BUNDLE).model_dump(exclude={"files"})
    bundle.write_manifest(paths.BUNDLE, {**manifest, "threshold": 0.5})
    again = record(contract)
    assert again.digest != first.digest
    assert again.compute.train_cpu_us == first.compute.train_cpu_us
    assert again.compute.peak_mb == first.compute.peak_mb
    model = paths.BUNDLE / bundle.MODEL
    model.write_bytes(model.read_bytes() + b"x")
    bundle.write_manifest(paths.BUNDLE, {**manifest, "threshold": 0.5})
    other = record(contract)
    assert other.compute.train_cpu_us is None
    assert other.compute.peak_mb is None
