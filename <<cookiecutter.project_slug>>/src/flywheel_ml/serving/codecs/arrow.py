"""Apache Arrow for /predict: an IPC stream of columns by name, checked and scored as columns.

Its rows are logged as one block of columns too, in the transaction before the answer: so many rows as texts would cost
more than all the rest. While another model is tried, rows go one by one through the batch like any others.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json

from flywheel_ml.core.contract import to_array
from flywheel_ml.core.parsing.arrow_numpy import to_arrow
from flywheel_ml.core.parsing.rules import REQUIRED
from flywheel_ml.prediction_log import blocks, build_block, new_block_ids
from flywheel_ml.serving.codecs.arrow_columns import Checked
from flywheel_ml.serving.codecs.ipc import inspect
from flywheel_ml.serving.codecs.native import NATIVE
from flywheel_ml.serving.codecs.tabular import none_twice, not_too_many, refused
from flywheel_ml.serving.errors import faults
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.models.served_model import Deployment, ServedModel
from flywheel_ml.serving.observability.phases import Marks
from flywheel_ml.serving.prediction import parallel
from flywheel_ml.serving.prediction.batcher import Batcher
from flywheel_ml.serving.prediction.pipeline import can_log_blocks
from flywheel_ml.serving.prediction.requests import Completed, PredictRequest, Results

ARROW = "application/vnd.apache.arrow.stream"


class Table(NamedTuple):
    """A request's rows: as the model takes them, and as the log keeps them (a `pyarrow.Table`)."""

    columns: Mapping[str, np.ndarray]
    inputs: Any


async def predict(
    predictor: Batcher, deployment: Deployment, request: PredictRequest, wants_arrow: bool, limit: int
) -> bytes:
    """The response to an IPC stream, in Arrow or in JSON, after its rows were committed.

    Args:
        predictor: scores and logs.
        deployment: the model that answers, and experiments.
        request: its body is an IPC stream, not compressed.
        wants_arrow: which of the two.
        limit: most bytes that texts may take up once dictionaries are resolved.

    Raises:
        Problem: 400, 413, 415 or 422 for the body, 415 if pyarrow is not installed, 503 when the log takes nothing.
    """
    model = deployment.model
    if can_log_blocks(deployment):
        try:
            return await predictor.predict_alone(
                deployment, request, lambda marks: _complete(model, request, wants_arrow, limit, marks)
            )
        except Exception as error:
            # That the model failed, or has no number for some row, is the batch's to deal with.
            if isinstance(error, Problem):
                raise
    return await predictor.predict(deployment, request._replace(codec=_RowCodec(wants_arrow, limit)))


def read(model: ServedModel, body: bytes, limit: int) -> Table:
    """The rows of a body, checked by the contract; raises as `predict`."""
    try:
        import pyarrow as pa
    except ImportError:
        told = f"this server has no pyarrow, which '{ARROW}' needs; install the extra 'arrow', or send JSON"
        raise Problem(415, "unsupported-media-type", told) from None
    # Its own one keeps some 10 MB more.
    pa.set_memory_pool(pa.system_memory_pool())
    contract = model.bundle.contract
    try:
        not_too_many(inspect(body), "instances", model.schema)
        table = pa.ipc.open_stream(body, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise faults.malformed("arrow", str(error).partition("\n")[0]) from None
    if table.num_rows == 0:
        raise refused("instances", "must have at least 1 row")
    none_twice(table.column_names)
    reader = model.schema.reader
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
        {one.column.name: one.array for one in found} | {column.name: to_array(column, nothing) for column in absent},
        pa.table({one.column.name: one.logged() for one in found}),
    )


def _complete(model: ServedModel, request: PredictRequest, wants_arrow: bool, limit: int, marks: Marks) -> Completed:
    table = read(model, request.body, limit)
    marks.append(time.perf_counter())
    predictions = model.bundle.to_predictions(parallel.run(model.bundle, model.bundle.encode(table.columns)))
    marks.append(time.perf_counter())
    ids = new_block_ids(len(predictions.values))
    told = _told(model, ids, predictions.values, predictions.output, model.degraded)
    scored = told.drop_columns("id").append_column("score", to_arrow(predictions.scores))
    asked, answered = (blocks.pack_table(part, blocks.COMPRESSION) for part in (table.inputs, scored))
    block = build_block(model.origin, ids, asked, answered, request.microseconds())
    content = (
        blocks.pack_table(told) if wants_arrow else NATIVE.encode(model, Results(ids, model.texts.write(predictions)))
    )
    marks.append(time.perf_counter())
    return Completed([block], content, model.texts.classes(predictions))


def _told(model: ServedModel, ids: Sequence[str], values: np.ndarray, output: np.ndarray, degraded: bool) -> Any:
    """What a request is told, as a `pyarrow.Table`: arrays as `Predictions` has them; the schema says who answered."""
    import pyarrow as pa

    if model.texts.class_names:
        each = [to_arrow(probabilities) for probabilities in output.T]
        beside = {"probabilities": pa.StructArray.from_arrays(each, model.texts.class_names)}
    else:
        beside = {"interval": pa.FixedSizeListArray.from_arrays(to_arrow(output[:, 1:].ravel()), 2)}
    facts = {"model_version": model.ref.version, "variant": model.variant, "degraded": str(degraded).lower()}
    names = to_arrow(np.array(ids, dtype=object))
    return pa.table({"id": names, "prediction": to_arrow(values), **beside}).replace_schema_metadata(facts)


class _RowCodec:
    """The `Codec` of a request whose rows may be answered by different models."""

    def __init__(self, wants_arrow: bool, limit: int) -> None:
        self._wants_arrow = wants_arrow
        self._limit = limit

    def decode(self, model: ServedModel, body: bytes) -> list[dict[str, Any]]:
        return blocks.to_json_rows(read(model, body, self._limit).inputs)

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """Columns, or the API's own JSON."""
        if not self._wants_arrow:
            return NATIVE.encode(model, results)
        told = from_json(f"[{','.join(results.outputs)}]")
        texts = isinstance(told[0]["prediction"], str)
        values = np.array([one["prediction"] for one in told], dtype=object if texts else None)
        if model.texts.class_names:
            output = np.array([list(one["probabilities"].values()) for one in told])
        else:
            output = np.array([[one["prediction"], *one["interval"]] for one in told])
        table = _told(model, results.ids, values, output, results.degraded(model))
        if results.is_mixed:
            versions, variants = zip(*((one.ref.version, one.variant) for one in results.models), strict=True)
            for name, column in (("model_version", versions), ("variant", variants)):
                table = table.append_column(name, to_arrow(np.array(column, dtype=object)))
        return blocks.pack_table(table)
