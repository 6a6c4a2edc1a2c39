"""Writes the stream into a prediction log window by window, and monitors each as the hourly flow does."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core import bundle, serving_folder
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.params import MonitorParams, Params
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import tables
from flywheel_ml.flows import monitoring
from flywheel_ml.flows.replay.synthetic import plant
from flywheel_ml.flows.replay.synthetic.faults import ScheduledWindow
from flywheel_ml.prediction_log import Origin, Outcome, Row, Writer, build_predictions, new_ids, now_us, to_datetime
from flywheel_ml.prediction_log.selection import HOUR_US
from flywheel_ml.serving.models.output_texts import OutputTexts
from flywheel_ml.utils.files import canonical_json, sha256_file

VERSION = "1"


class Watched(NamedTuple):
    """A window after monitoring: its alerts, and what shows the fault, if it has one and it was found."""

    window: ScheduledWindow
    rows: int
    alerts: tuple[str, ...]
    sign: str


class Plant(NamedTuple):
    """A serving folder with a model of the plant, and a log; `start_us` is the full hour in which the stream begins."""

    settings: Settings
    params: Params
    bundle: Bundle
    start_us: int


def build_plant(folder: Path, monitor: MonitorParams, windows: int, seed: int) -> Plant:
    """Train a small model and roll it out in a folder; the stream ends an hour ago: profiles need full hours."""
    from flywheel_ml.model.packaging.in_memory import build_bundle

    params = plant.make_params(monitor, seed)
    rows = plant.draw_rows(plant.TRAINING_ROWS, np.random.default_rng(seed))
    made = build_bundle(folder / "made" / "bundle", rows, plant.CONTRACT, params)
    digest = sha256_file(made / bundle.MANIFEST)
    # Defaults only: the settings of this machine name other stores, and sinks that must receive nothing.
    settings = Settings.model_construct(
        prediction_log=str(folder / "log"),
        serving_folder=folder / "serving",
        tracking_uri=f"sqlite:///{folder}/none.db",
    )
    ref = serving_folder.BundleRef(version=VERSION, digest=digest)
    path = serving_folder.bundle_folder(settings.serving_folder, ref)
    path.parent.mkdir(parents=True)
    made.rename(path)
    routing = serving_folder.Routing(
        name=plant.CONTRACT.name, champion=ref, updated_at=datetime.now(UTC).isoformat(), reason="synthetic replay"
    )
    serving_folder.write_routing(settings.serving_folder, routing)
    start_us = (now_us() // HOUR_US - windows - 1) * HOUR_US
    return Plant(settings, params, Bundle.open(path, digest), start_us)


def watch(
    folder: Path, schedule: Sequence[ScheduledWindow], monitor: MonitorParams, rows: int, seed: int
) -> Iterator[Watched]:
    """Write and monitor one window after the other; one window is an hour of the log, its labels arrive at its end.

    Args:
        folder: working folder, which becomes the current folder meanwhile: monitoring writes its reports there.
        schedule: the windows.
        monitor: thresholds.
        rows: rows of a window.
        seed: of rows and model.
    """
    built, rng = build_plant(folder, monitor, len(schedule), seed), np.random.default_rng(seed + 1)
    project = Project(package="synthetic")
    with contextlib.chdir(folder), Writer(built.settings.prediction_log, "serve") as writer:
        for number, window in enumerate(schedule):
            drawn = plant.draw_rows(rows, rng)
            if window.fault is not None:
                drawn = window.fault.damage(drawn, window.at)
            since_us = built.start_us + number * HOUR_US
            if not drawn.is_empty():
                writer.append(_build_rows(drawn, built.bundle, since_us)).result()
            found = monitoring.monitor_window(project, built.settings, built.params, since=to_datetime(since_us))
            sign = window.fault.sign(found.result) if window.fault is not None else ""
            yield Watched(window, drawn.height, tuple(alert.what for alert in found.alerts), sign)


def _build_rows(frame: pl.DataFrame, model: Bundle, since_us: int) -> list[Row]:
    """Build log rows of predictions that are spread over an hour, and their labels."""
    contract, inputs = model.contract, [column.name for column in model.contract.inputs]
    answers = model.predict(tables.to_columns(frame, contract.inputs))
    ids, outputs = new_ids(frame.height), OutputTexts(contract.classes).write(answers)
    origin = Origin("champion", VERSION, model.digest, False)
    made = build_predictions(origin, ids, frame.select(inputs).to_dicts(), outputs, answers.scores.tolist(), 1000)
    times = (since_us + np.arange(frame.height) * (HOUR_US // frame.height)).tolist()
    end = since_us + HOUR_US
    labels = frame[contract.target.name].to_list()
    return [
        *(one._replace(timestamp_us=time) for one, time in zip(made, times, strict=True)),
        *(Outcome(name, end, canonical_json(label), end) for name, label in zip(ids, labels, strict=True)),
    ]
