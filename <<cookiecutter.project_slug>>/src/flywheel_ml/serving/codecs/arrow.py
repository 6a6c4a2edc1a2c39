"""Apache Arrow for /predict: an IPC stream of columns by name, checked and scored as columns.

Its rows are logged as one block of columns too, in the transaction before the answer: so many rows as texts would cost
more than all the rest. While another model is tried, rows go one by one through the batch like any others.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json

from flywheel_ml.core.contract import as_array
from flywheel_ml.core.parsing.columnar import array_of
from flywheel_ml.core.parsing.rules import REQUIRED
from flywheel_ml.prediction_log import Prediction, block_ids, blocks
from flywheel_ml.serving.codecs.arrow_columns import Checked
from flywheel_ml.serving.codecs.ipc import inspect
from flywheel_ml.serving.codecs.tabular import none_twice, not_too_many, refused
from flywheel_ml.serving.errors import faults
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.experiments.trial import NO_WISH, Wish
from flywheel_ml.serving.models.live import Live
from flywheel_ml.serving.observability.series import Laps
from flywheel_ml.serving.observability.tracing import NOBODY, Origin
from flywheel_ml.serving.prediction import block, parallel
from flywheel_ml.serving.prediction.phases import OWN, Work, answer, are_of_several, named, outputs, with_id
from flywheel_ml.serving.prediction.predict import Predictor

ARROW = "application/vnd.apache.arrow.stream"


class Table(NamedTuple):
    """A request's rows: as the model takes them, and as the log keeps them (a `pyarrow.Table`)."""

    columns: Mapping[str, np.ndarray]
    inputs: Any


async def predict(
    predictor: Predictor,
    live: Live,
    body: bytes,
    wants_arrow: bool,
    limit: int,
    wish: Wish = NO_WISH,
    origin: Origin = NOBODY,
) -> bytes:
    """The answer to a body, in Arrow or in JSON, after its rows were committed.

    Args:
        predictor: scores and logs.
        live: the model.
        body: an IPC stream, not compressed.
        wants_arrow: which of the two.
        limit: most bytes that texts may take up once dictionaries are resolved.
        wish: what the request's headers say of who answers it.
        origin: who it is.

    Raises:
        Problem: 400, 413, 415 or 422 for the body, 415 if pyarrow is not installed, 503 when the log takes nothing.
    """
    since = time.perf_counter()
    if block.is_for(live):
        try:
            return await predictor.alone(
                live, lambda laps: _work(live, read(live, body, limit), wants_arrow, since, laps), since, origin
            )
        except Exception as error:
            # That the model failed, or has no number for some row, is the batch's to deal with.
            if isinstance(error, Problem):
                raise
    return await predictor.predict(live, body, _ByRow(wants_arrow, limit), wish, origin)


def read(live: Live, body: bytes, limit: int) -> Table:
    """The rows of a body, checked by the contract; raises as `predict`."""
    try:
        import pyarrow as pa
    except ImportError:
        told = f"this server has no pyarrow, which '{ARROW}' needs; install the extra 'arrow', or send JSON"
        raise Problem(415, "unsupported-media-type", told) from None
    # Its own one keeps some 10 MB more.
    pa.set_memory_pool(pa.system_memory_pool())
    contract = live.bundle.contract
    try:
        not_too_many(inspect(body), "instances", live.schema)
        table = pa.ipc.open_stream(body, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise faults.malformed("arrow", str(error).partition("\n")[0]) from None
    if table.num_rows == 0:
        raise refused("instances", "must have at least 1 row")
    none_twice(table.column_names)
    reader = live.schema.reader
    named = reader.names(table.column_names)
    absent = [column for column in contract.inputs if column.name not in named]
    if required := [column.name for column in absent if column.name in reader.required]:
        raise refused(required[0], REQUIRED)
    found = [Checked(reader, given, name, table[given], limit) for name, given in named.items()]
    if broken := [one for one in found if one.broken]:
        listed = [one.fault() for one in broken[: faults.SHOWN]]
        raise faults.refused(sum(one.broken for one in broken), listed)
    nothing = [None] * table.num_rows
    return Table(
        {one.column.name: one.array for one in found} | {column.name: as_array(column, nothing) for column in absent},
        pa.table({one.column.name: one.logged() for one in found}),
    )


def _work(live: Live, table: Table, wants_arrow: bool, since: float, laps: Laps) -> Work:
    laps.lap("check")
    predictions = live.bundle.decide(parallel.run(live.bundle, live.bundle.encode(table.columns)))
    laps.lap("score")
    ids = block_ids(len(predictions.values))
    told = _told(live, ids, predictions.values, predictions.output, live.degraded)
    scored = told.drop_columns("id").append_column("score", array_of(predictions.scores))
    asked, answered = (blocks.pack(part, blocks.COMPRESSION) for part in (table.inputs, scored))
    one = block.made(live, ids, asked, answered, since)
    content = blocks.pack(told) if wants_arrow else answer(live, map(with_id, ids, outputs(live, predictions)))
    laps.lap("write")
    return Work([one], content, named(live, predictions))


def _told(live: Live, ids: Sequence[str], values: np.ndarray, output: np.ndarray, degraded: bool) -> Any:
    """What a request is told, as a `pyarrow.Table`: arrays as `Predictions` has them; the schema says who answered."""
    import pyarrow as pa

    if live.class_names:
        each = [array_of(probabilities) for probabilities in output.T]
        beside = {"probabilities": pa.StructArray.from_arrays(each, live.class_names)}
    else:
        beside = {"interval": pa.FixedSizeListArray.from_arrays(array_of(output[:, 1:].ravel()), 2)}
    facts = {"model_version": live.ref.version, "variant": live.variant, "degraded": str(degraded).lower()}
    names = array_of(np.array(ids, dtype=object))
    return pa.table({"id": names, "prediction": array_of(values), **beside}).replace_schema_metadata(facts)


class _ByRow:
    """The `Form` of a request whose rows may be answered by different models."""

    def __init__(self, wants_arrow: bool, limit: int) -> None:
        self._wants_arrow = wants_arrow
        self._limit = limit

    def read(self, live: Live, body: bytes) -> list[dict[str, Any]]:
        return blocks.plain(read(live, body, self._limit).inputs)

    def write(self, live: Live, logged: Sequence[Prediction]) -> bytes:
        if not self._wants_arrow:
            return OWN.write(live, logged)
        told = from_json(f"[{','.join(row.output for row in logged)}]")
        texts = isinstance(told[0]["prediction"], str)
        values = np.array([one["prediction"] for one in told], dtype=object if texts else None)
        if live.class_names:
            output = np.array([list(one["probabilities"].values()) for one in told])
        else:
            output = np.array([[one["prediction"], *one["interval"]] for one in told])
        table = _told(live, [row.id for row in logged], values, output, any(row.degraded for row in logged))
        if are_of_several(logged):
            for name in ("model_version", "variant"):
                table = table.append_column(
                    name, array_of(np.array([getattr(row, name) for row in logged], dtype=object))
                )
        return blocks.pack(table)
