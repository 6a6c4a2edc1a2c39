"""What was predicted, and what turned out.

A prediction may be acknowledged once `Writer.commit` said yes or `Writer.append` has resolved: its row is then
committed, and a `kill -9` no longer loses it. Commits are grouped naturally: whatever queued while the last
transaction ran is the next one. There is no timer, so a lone request waits for nothing but its own commit.

In a folder, each process writes a SQLite file of its own (SQLite before 3.51.3 can lose pages when two
connections checkpoint one WAL) and readers open all files as one log. Given a database URL, all write there.
"""

from flywheel_ml.prediction_log.reader import LoggedPrediction, Reader, VariantStats, merge_stats
from flywheel_ml.prediction_log.rows import (
    SHADOW,
    Block,
    Job,
    Origin,
    Outcome,
    Prediction,
    Row,
    build_block,
    build_predictions,
    dumps,
    new_block_ids,
    new_id,
    new_ids,
    now_us,
    to_datetime,
)
from flywheel_ml.prediction_log.spool import Spool
from flywheel_ml.prediction_log.stores import LabelConflict, Unavailable
from flywheel_ml.prediction_log.writer import Writer

__all__ = [
    "SHADOW",
    "Block",
    "Job",
    "LabelConflict",
    "LoggedPrediction",
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
    "dumps",
    "merge_stats",
    "new_block_ids",
    "new_id",
    "new_ids",
    "now_us",
    "to_datetime",
]
