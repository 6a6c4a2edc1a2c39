"""Compares the estimate of performance without labels with NannyML's, on chunks of synthetic scores.

    python tests/benchmarks/run.py cbpe -- [--python PYTHON] [--chunks 20] [--rows 5000]

NannyML runs in an environment of its own, because it needs older libraries: give its Python, or let this script make
one with `python -m venv` in a temporary folder. The scores of a chunk are drawn from a Beta distribution that moves
from chunk to chunk, the labels from the scores, so the scores are calibrated and only the inputs change. NannyML would
calibrate them again on the reference, which alone moves its estimate by up to 0.008; a bundle's scores are calibrated
in training, so its calibrator is replaced by one that changes nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from flywheel_ml.core import profile
from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.profile import PREDICTION
from flywheel_ml.monitoring.performance.estimation import compute_expected_metrics, spread_bins

THRESHOLD = 0.4
REFERENCE_ROWS = 50_000
METRICS = ("roc_auc", "accuracy", "precision", "recall", "f1")
TOLERANCE = 0.002
NOT_INSTALLED = 3
"""Exit status if NannyML cannot be installed."""
PACKAGES = ("nannyml>=0.13,<0.14", "numpy<2", "pandas<2.3", "scikit-learn<1.6", "scipy<1.14", "statsmodels")
"""NannyML, and the last libraries that it runs with; it does not declare statsmodels."""
SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import nannyml, pandas
from nannyml.calibration import NoopCalibrator
folder, rows, metrics = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
frames = [pandas.read_csv(f"{folder}/{name}.csv") for name in ("reference", "analysis")]
estimator = nannyml.CBPE(
    y_pred_proba="score", y_pred="prediction", y_true="label", metrics=metrics, chunk_size=rows,
    problem_type="classification_binary", calibrator=NoopCalibrator(),
)
estimator.fit(frames[0])
found = estimator.estimate(frames[1]).filter(period="analysis").to_df()
print(json.dumps({name: found[(name, "value")].tolist() for name in metrics}))
"""


def draw_scores(at: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw scores, float32 as a model returns them, from a distribution that moves with `at`."""
    return rng.beta(1.5 + 0.05 * at, 4 - 0.1 * at, rows).astype(np.float32)


def build_frame(scores: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    label = (rng.random(len(scores)) < scores).astype(int)
    return pl.DataFrame({"score": scores, "prediction": (scores >= THRESHOLD).astype(int), "label": label})


def estimate(reference: np.ndarray, chunks: list[np.ndarray]) -> dict[str, list[float]]:
    """Estimate each chunk as monitoring does: from counts in the bins of the reference."""
    columns = (Column(name="x", type="float"), Column(name="y", type="boolean", role="target"))
    contract = Contract(name="drawn", columns=columns)
    counted = profile.build(contract, {"x": np.zeros(len(reference))}, reference.astype(np.float64))
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for scores in chunks:
        window = profile.count(counted, {"x": np.zeros(len(scores))}, scores.astype(np.float64))
        metrics = compute_expected_metrics(*spread_bins(window.columns[PREDICTION], THRESHOLD), THRESHOLD)
        for name in METRICS:
            found[name].append(metrics[name])
    return found


def make_environment(folder: Path) -> Path:
    """Install NannyML into a new environment; returns its Python. Exits if that is impossible."""
    python = folder / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *PACKAGES],
    ):
        if subprocess.run(command, check=False, capture_output=True).returncode:
            print(f"{PACKAGES[0]} cannot be installed; is a package index reachable?", file=sys.stderr)
            sys.exit(NOT_INSTALLED)
    return python


def compare(python: Path, folder: Path, chunks: int, rows: int) -> dict[str, float]:
    """Return the largest difference from NannyML's estimate, over all chunks, of each metric."""
    rng = np.random.default_rng(13)
    reference = draw_scores(0, REFERENCE_ROWS, rng)
    drawn = [draw_scores(at, rows, rng) for at in range(chunks)]
    build_frame(reference, rng).write_csv(folder / "reference.csv")
    build_frame(np.concatenate(drawn), rng).write_csv(folder / "analysis.csv")
    command = [str(python), "-c", SCRIPT, str(folder), str(rows), ",".join(METRICS)]
    environment = {**os.environ, "NML_DISABLE_USAGE_LOGGING": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    theirs, ours = json.loads(done.stdout.splitlines()[-1]), estimate(reference, drawn)
    return {name: float(np.abs(np.array(ours[name]) - np.array(theirs[name])).max()) for name in METRICS}


def main() -> int:
    """Print one line per metric; returns 0, 1 if a difference exceeds the tolerance, or `NOT_INSTALLED`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="Python of an environment with NannyML")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--rows", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = options.python or make_environment(Path(scratch, "nannyml"))
        found = compare(python, Path(scratch), options.chunks, options.rows)
    for name, difference in found.items():
        print(f"{name:10} largest difference {difference:.6f}, at most {TOLERANCE}", flush=True)
    return int(max(found.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
