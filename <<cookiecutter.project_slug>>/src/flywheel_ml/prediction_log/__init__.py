"""What was predicted, and what turned out.

A prediction may be acknowledged once `Writer.commit` said yes or `Writer.append` has resolved: its row is then
committed, and a `kill -9` no longer loses it. Commits are grouped naturally: whatever queued while the last
transaction ran is the next one. There is no timer, so a lone request waits for nothing but its own commit.

In a folder, each process writes a SQLite file of its own (SQLite before 3.51.3 can lose pages when two
connections checkpoint one WAL) and readers open all files as one log. Given a database URL, all write there.
"""

from flywheel_ml.prediction_log.reader import Logged, Reader, Tally, together
from flywheel_ml.prediction_log.rows import (
    SHADOW,
    Block,
    Job,
    Origin,
    Outcome,
    Prediction,
    Row,
    block_ids,
    build_block,
    build_predictions,
    dumps,
    moment,
    new_id,
    new_ids,
    now_us,
)
from flywheel_ml.prediction_log.spool import Spool
from flywheel_ml.prediction_log.stores import Contradiction, Unavailable
from flywheel_ml.prediction_log.writer import Writer

__all__ = [
    "SHADOW",
    "Block",
    "Contradiction",
    "Job",
    "Logged",
    "Origin",
    "Outcome",
    "Prediction",
    "Reader",
    "Row",
    "Spool",
    "Tally",
    "Unavailable",
    "Writer",
    "block_ids",
    "build_block",
    "build_predictions",
    "dumps",
    "moment",
    "new_id",
    "new_ids",
    "now_us",
    "together",
]
