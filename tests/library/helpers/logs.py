"""Prediction logs with rows of several days, for tests of retention."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flywheel_ml.prediction_log import (
    Block,
    MetricValue,
    Outcome,
    Prediction,
    Reader,
    Row,
    Writer,
    blocks,
    dumps,
    now_us,
)
from flywheel_ml.prediction_log.retention.log import Log

DAY_US = 86_400_000_000
HOLD = """
import sys
from flywheel_ml.prediction_log import Writer
with Writer(sys.argv[1], "serve"):
    print("open", flush=True)
    sys.stdin.read()
"""
"""A process that owns a file of the log until its stdin is closed."""


def make_id(timestamp_us: int, number: int = 0) -> str:
    """Return an id as the log makes it: milliseconds, then distinct digits."""
    return f"{timestamp_us // 1000:012x}{number:020x}"


def make_prediction(days_ago: float, number: int = 0, entity: str | None = None, **changed: Any) -> Prediction:
    """Return a prediction of some days ago."""
    timestamp_us = now_us() - int(days_ago * DAY_US)
    known: dict[str, Any] = {
        "id": make_id(timestamp_us, number),
        "timestamp_us": timestamp_us,
        "entity_id": entity,
        "event_timestamp_us": None,
        "variant": "champion",
        "model_version": "1",
        "model_digest": None,
        "inputs": dumps({"x": number, "who": entity}),
        "output": dumps({"prediction": True}),
        "score": 0.25,
        "latency_us": 900,
        "degraded": False,
    }
    return Prediction(**{**known, **changed})


def make_block(days_ago: float, entities: Sequence[str], number: int = 0) -> Block:
    """Return the block of one request with a row for each entity."""
    timestamp_us = now_us() - int(days_ago * DAY_US)
    inputs = blocks.pack_inputs([{"x": at, "who": entity} for at, entity in enumerate(entities)])
    outputs = blocks.pack_outputs(['{"prediction":true}'] * len(entities), ["0.5"] * len(entities))
    shared = ("who", None, "champion", "1", None)
    name = make_id(timestamp_us, number * 16**8)
    return Block(name, timestamp_us, len(entities), *shared, inputs, outputs, 900, False)


def label(prediction: Prediction | str) -> Outcome:
    """Return a label of a prediction, which arrived now."""
    return Outcome(prediction if isinstance(prediction, str) else prediction.id, now_us(), "true")


def value(prediction: Prediction | str, metric: str = "revenue", value: float = 12.5) -> MetricValue:
    """The value of a business metric of a prediction, or of an id."""
    name, at = (prediction, now_us()) if isinstance(prediction, str) else (prediction.id, prediction.timestamp_us)
    return MetricValue(name, metric, at, value, at)


def write(folder: Path, *files: Sequence[Row]) -> Log:
    """Write rows to a file each; returns the log."""
    writers = [Writer(str(folder), "serve") for _ in files]
    for writer, rows in zip(writers, files, strict=True):
        writer.append(rows).result(30)
    for writer in writers:
        writer.close()
    return open_log(folder)


def open_log(folder: Path) -> Log:
    """Return the log in a folder, with exports next to it."""
    return Log(str(folder), folder.parent / "spool", folder.parent / "exports")


def read_ids(folder: Path) -> set[str]:
    """Return the ids of all predictions."""
    return {row.prediction.id for row in Reader(str(folder)).predictions()}


def hold_file(folder: Path) -> "subprocess.Popen[str]":
    """Start a process that owns a file of the log."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def find_bytes(folder: Path, *texts: str) -> list[str]:
    """Return the names of files in a folder that contain one of the texts, as raw bytes."""
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(text.encode() in path.read_bytes() for text in texts)
    ]
