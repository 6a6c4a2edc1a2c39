"""A made-up plant: rows of pumps that are measured every hour, and whether one fails; pure, by seed."""

from pathlib import Path

import numpy as np
import polars as pl

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.params import (
    DataParams,
    EvaluateParams,
    GateParams,
    HistGradientBoostingParams,
    MonitorParams,
    Params,
    SplitParams,
    TrainParams,
)

MODES = ("eco", "normal", "boost")
TRAINING_ROWS = 8000

CONTRACT = Contract(
    name="pumps",
    description="Made-up rows: pumps that are measured, and whether one fails soon.",
    columns=(
        Column(name="temperature", type="float", range=(-20.0, 80.0), unit="°C"),
        Column(name="pressure", type="float", range=(900.0, 1100.0), unit="hPa"),
        Column(name="load", type="float", unit="kW"),
        Column(name="flow", type="float", nullable=True, unit="m³/h", description="from the historian"),
        Column(name="vibration", type="float", nullable=True, unit="mm/s", description="from the historian"),
        Column(name="mode", type="string", categories=MODES),
        Column(name="fails", type="boolean", role="target"),
    ),
)


def draw_rows(rows: int, rng: np.random.Generator) -> pl.DataFrame:
    """Draw rows of the plant in good order: n_rows × contract columns."""
    temperature, load = rng.normal(35, 8, rows), rng.normal(50, 10, rows)
    vibration, flow = rng.gamma(4, 0.5, rows), rng.normal(20, 3, rows)
    mode = rng.integers(0, len(MODES), rows)
    signal = (
        (temperature - 35) / 8 + 0.8 * (load - 50) / 10 + 1.2 * (vibration - 2) - 0.5 * (flow - 20) / 3 + 0.6 * mode
    )
    fails = rng.random(rows) < 1 / (1 + np.exp(2.2 - 1.3 * signal))
    return pl.DataFrame(
        {
            "temperature": temperature,
            "pressure": rng.normal(1000, 12, rows),
            "load": load,
            "flow": flow,
            "vibration": vibration,
            "mode": np.array(MODES)[mode],
            "fails": fails,
        }
    )


def make_params(monitor: MonitorParams, seed: int) -> Params:
    """Make parameters for a small model, with the thresholds of monitoring that are to be tried."""
    return Params(
        seed=seed,
        data=DataParams(raw=Path("data/raw/pumps.parquet")),
        split=SplitParams(by="hash", validation_share=0.15, test_share=0.35),
        train=TrainParams(
            estimator="hist_gradient_boosting",
            hist_gradient_boosting=HistGradientBoostingParams(max_iter=40, categories="order"),
            calibration="none",
            sklearn_default=False,
            baseline_rows=1000,
        ),
        evaluate=EvaluateParams(),
        gates=GateParams(max_drop_from_champion=0.01, parity_tolerance=0.00001),
        monitor=monitor,
    )
