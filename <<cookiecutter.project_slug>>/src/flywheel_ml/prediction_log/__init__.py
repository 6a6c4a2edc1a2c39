"""The prediction log: predictions and their labels.

A server (serving/prediction/batcher.py) may acknowledge a prediction once `Writer.try_commit` returned True or the
future of `Writer.append` resolved. Its row is then committed and survives a `kill -9`. The writer groups commits: rows
that queue up during one transaction form the next one. There is no timer, so a single request waits for its own commit
only.

In a folder, each process writes its own SQLite file, because SQLite before 3.51.3 can lose pages when two connections
checkpoint one WAL. Readers open all files as one log. With a database URL, all processes write to that database.
"""

from flywheel_ml.prediction_log.reader import LoggedPrediction, Reader
from flywheel_ml.prediction_log.rows import (
    CHALLENGER,
    SHADOW,
    Block,
    EntityOutcome,
    Job,
    MetricValue,
    Origin,
    Outcome,
    Prediction,
    Row,
    build_block,
    build_predictions,
    derive_shadow_id,
    dumps,
    new_block_ids,
    new_id,
    new_ids,
    now_us,
    to_datetime,
)
from flywheel_ml.prediction_log.spool import Spool
from flywheel_ml.prediction_log.stores import LabelConflict, Unavailable
from flywheel_ml.prediction_log.variant_stats import VariantStats, merge_stats
from flywheel_ml.prediction_log.writer import Writer

__all__ = [
    "CHALLENGER",
    "SHADOW",
    "Block",
    "EntityOutcome",
    "Job",
    "LabelConflict",
    "LoggedPrediction",
    "MetricValue",
    "Origin",
    "Outcome",
    "Prediction",
    "Reader",
    "Row",
    "Spool",
    "Unavailable",
    "VariantStats",
    "Writer",
    "build_block",
    "build_predictions",
    "derive_shadow_id",
    "dumps",
    "merge_stats",
    "new_block_ids",
    "new_id",
    "new_ids",
    "now_us",
    "to_datetime",
]
