"""The tables of the log, their rows and ids."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic_core import to_json

_EPOCH = datetime(1970, 1, 1)

SCHEMA_VERSION = 5
"""Version 2 added blocks; version 3 digests and event times, and it renamed columns; version 4 labels by entity, and
when a label arrived; version 5 the variant that a row was assigned to, and values of metrics (migrations.py)."""
SHADOW = "shadow"
"""Variant of rows that were logged alongside an answer but sent to no client."""
CHALLENGER = "challenger"
"""Variant of rows that the model next to the champion answered."""
BLOCK_DIGITS = 8
"""The last digits of an id in a block are the row's position."""

metadata = sa.MetaData()

versions = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))

predictions = sa.Table(
    "predictions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("timestamp_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("entity_id", sa.Text),
    sa.Column("event_timestamp_us", sa.BigInteger),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("model_digest", sa.String(64)),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("latency_us", sa.Integer, nullable=False),
    sa.Column("degraded", sa.Boolean, nullable=False),
    sa.Column("assigned_variant", sa.Text),
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("prediction_id", sa.String(32), primary_key=True),
    sa.Column("timestamp_us", sa.BigInteger, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("arrived_us", sa.BigInteger),
)

entity_labels = sa.Table(
    "entity_labels",
    metadata,
    sa.Column("entity_id", sa.Text, primary_key=True),
    sa.Column("timestamp_us", sa.BigInteger, primary_key=True, autoincrement=False, index=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("arrived_us", sa.BigInteger),
)

metric_values = sa.Table(
    "metric_values",
    metadata,
    sa.Column("prediction_id", sa.String(32), primary_key=True),
    sa.Column("metric", sa.Text, primary_key=True),
    sa.Column("timestamp_us", sa.BigInteger, nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("arrived_us", sa.BigInteger),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("timestamp_us", sa.BigInteger, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("model_digest", sa.String(64)),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
)


blocks = sa.Table(
    "blocks",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("timestamp_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("entity_column", sa.Text),
    sa.Column("event_timestamp_column", sa.Text),
    sa.Column("variant", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("model_digest", sa.String(64)),
    sa.Column("inputs", sa.LargeBinary, nullable=False),
    sa.Column("outputs", sa.LargeBinary, nullable=False),
    sa.Column("latency_us", sa.Integer, nullable=False),
    sa.Column("degraded", sa.Boolean, nullable=False),
    sa.Column("assigned_variant", sa.Text),
)


class Prediction(NamedTuple):
    """One logged prediction; `inputs` and `output` are JSON texts.

    `timestamp_us` is the time of the prediction, in microseconds since 1970 UTC. `event_timestamp_us` is the value of
    the contract's time column: microseconds since 1970 on that column's own clock. `model_digest` is the sha256 of the
    bundle's manifest; None in rows that were logged before schema 3. `variant` is the one that answered;
    `assigned_variant` is the one that was to answer and failed, or None if they are the same; of several challengers it
    is `challenger:` and the version. A shadow's row is `degraded` if the shadow failed, and then has the answer that
    was sent.
    """

    id: str
    timestamp_us: int
    entity_id: str | None
    event_timestamp_us: int | None
    variant: str
    model_version: str
    model_digest: str | None
    inputs: str
    output: str
    score: float
    latency_us: int
    degraded: bool
    assigned_variant: str | None = None


class Block(NamedTuple):
    """The predictions of one large request; `blocks.py` defines `inputs` and `outputs`.

    `id` is the id of the first row; the others count up in the last eight digits. `entity_column` and
    `event_timestamp_column` name columns of `inputs`.
    """

    id: str
    timestamp_us: int
    rows: int
    entity_column: str | None
    event_timestamp_column: str | None
    variant: str
    model_version: str
    model_digest: str | None
    inputs: bytes
    outputs: bytes
    latency_us: int
    degraded: bool
    assigned_variant: str | None = None

    @property
    def pages(self) -> int:
        """About how many SQLite pages the columns fill."""
        return (len(self.inputs) + len(self.outputs)) // 4096


class Origin(NamedTuple):
    """The model that made predictions, and its contract's columns for the entity and the event time."""

    variant: str
    model_version: str
    model_digest: str | None
    degraded: bool
    entity_column: str | None = None
    event_timestamp_column: str | None = None


class Outcome(NamedTuple):
    """The label of one prediction, as a JSON text.

    `timestamp_us` is the time of the outcome. `arrived_us` is when the label was stored; None before schema 4.
    """

    prediction_id: str
    timestamp_us: int
    label: str
    arrived_us: int | None = None

    @property
    def key(self) -> tuple[str]:
        """Identifies the label: a prediction has one."""
        return (self.prediction_id,)


class MetricValue(NamedTuple):
    """The value of a business metric, such as revenue, that a prediction led to; the times are as of `Outcome`."""

    prediction_id: str
    metric: str
    timestamp_us: int
    value: float
    arrived_us: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the value: a prediction has one value of a metric."""
        return self.prediction_id, self.metric


class EntityOutcome(NamedTuple):
    """The label of an entity at a time, as a JSON text; `labels/join.py` finds its predictions."""

    entity_id: str
    timestamp_us: int
    label: str
    arrived_us: int | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the label: an entity has one label at a time."""
        return self.entity_id, self.timestamp_us


class Job(NamedTuple):
    """One batch job; its output file is the log of its rows."""

    id: str
    timestamp_us: int
    model_version: str
    model_digest: str | None
    input: str
    output: str
    rows: int
    seconds: float


Row = Prediction | Block | Outcome | EntityOutcome | MetricValue | Job
TABLES: dict[type, sa.Table] = {
    Prediction: predictions,
    Block: blocks,
    Outcome: labels,
    EntityOutcome: entity_labels,
    MetricValue: metric_values,
    Job: jobs,
}


def build_predictions(
    origin: Origin,
    ids: Sequence[str],
    instances: Sequence[Mapping[str, Any]],
    outputs: Sequence[str],
    scores: Sequence[float],
    latency_us: int,
) -> list[Prediction]:
    """Build the log rows of n predictions with the current timestamp.

    Args:
        origin: the model that made them.
        ids: ids of the predictions, from `new_ids`.
        instances: the rows that were predicted, with the contract's column names.
        outputs: one JSON text per row.
        scores: one number per row.
        latency_us: microseconds from the request's arrival to its scores.
    """
    variant, version, digest, degraded, entity_column, event_column = origin
    timestamp_us = now_us()
    # Positional, because keyword arguments take twice as long.
    return [
        Prediction(
            name,
            timestamp_us,
            None if entity_column is None or (entity := instance.get(entity_column)) is None else str(entity),
            None if event_column is None else parse_microseconds(instance.get(event_column)),
            variant,
            version,
            digest,
            dumps(instance),
            output,
            score,
            latency_us,
            degraded,
        )
        for name, instance, output, score in zip(ids, instances, outputs, scores, strict=True)
    ]


def build_block(origin: Origin, ids: Sequence[str], inputs: bytes, outputs: bytes, latency_us: int) -> Block:
    """Build the block of one request with the current timestamp; `blocks` packs `inputs` and `outputs`."""
    variant, version, digest, degraded, entity_column, event_column = origin
    return Block(
        ids[0],
        now_us(),
        len(ids),
        entity_column,
        event_column,
        variant,
        version,
        digest,
        inputs,
        outputs,
        latency_us,
        degraded,
    )


def now_us() -> int:
    """Return the current time in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def new_id() -> str:
    """Return 32 hex digits that sort by time of creation: 48 bits of milliseconds, then 80 random bits."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """Return N ids with the same timestamp."""
    timestamp_ms, drawn = f"{time.time_ns() // 1_000_000:012x}", secrets.token_hex(10 * count)
    return [timestamp_ms + drawn[at : at + 20] for at in range(0, 20 * count, 20)]


def new_block_ids(count: int) -> list[str]:
    """Return ids for the rows of a block: they share all digits but the last eight, which count from 0."""
    shared = new_id()[:-BLOCK_DIGITS]
    return [f"{shared}{at:08x}" for at in range(count)]


def block_row_id(name: str, at: int) -> str:
    """Return the id of another row of the same block, by its position."""
    return f"{name[:-BLOCK_DIGITS]}{at:0{BLOCK_DIGITS}x}"


def derive_shadow_id(name: str) -> str:
    """Return the id of a shadow's row for a prediction's id: the same time, other random digits."""
    return name[:12] + blake2b(name.encode(), digest_size=10).hexdigest()


def to_datetime(timestamp_us: int) -> datetime:
    """Convert a log timestamp to an aware datetime."""
    return datetime.fromtimestamp(timestamp_us / 1e6, tz=UTC)


def parse_microseconds(text: str | None) -> int | None:
    """Parse an ISO 8601 time to microseconds since 1970, on its own clock if it names no zone."""
    if text is None:
        return None
    time_of_row = datetime.fromisoformat(text)
    since = time_of_row - (_EPOCH if time_of_row.tzinfo is None else _EPOCH.replace(tzinfo=UTC))
    # Dividing by a timedelta would double the time of this function.
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def dumps(content: Mapping[str, Any]) -> str:
    """Serialize to JSON as the log stores it."""
    return to_json(content).decode()


def group_by_kind(rows: Sequence[Row]) -> Iterator[tuple[type, Sequence[Row]]]:
    """Yield rows grouped by table."""
    kinds = set(map(type, rows))
    if len(kinds) == 1:
        yield kinds.pop(), rows
        return
    for kind in kinds:
        yield kind, [row for row in rows if type(row) is kind]
