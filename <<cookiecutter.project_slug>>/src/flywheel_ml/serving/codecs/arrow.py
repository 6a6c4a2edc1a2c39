"""Apache Arrow for /predict: an IPC stream of named columns, validated and scored as columns.

Rows are also logged as one block of columns, in the transaction before the response, because many rows as texts would
cost more than all other steps together. During an experiment, rows go through the batcher one by one.
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
from flywheel_ml.serving.codecs.arrow_columns import CheckedColumn
from flywheel_ml.serving.codecs.arrow_ipc import count_announced_rows
from flywheel_ml.serving.codecs.native import NATIVE
from flywheel_ml.serving.codecs.tabular import build_field_problem, check_row_limit, reject_duplicate_columns
from flywheel_ml.serving.errors import validation_errors
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.models.served_model import Deployment, ServedModel
from flywheel_ml.serving.observability.phases import Marks
from flywheel_ml.serving.prediction import parallel
from flywheel_ml.serving.prediction.batcher import Batcher
from flywheel_ml.serving.prediction.pipeline import can_log_blocks
from flywheel_ml.serving.prediction.requests import CompletedRequest, PredictRequest, Results

ARROW = "application/vnd.apache.arrow.stream"


class DecodedTable(NamedTuple):
    """A request's rows: `columns` for the model, and `inputs` for the log (a `pyarrow.Table`)."""

    columns: Mapping[str, np.ndarray]
    inputs: Any


async def predict(
    predictor: Batcher, deployment: Deployment, request: PredictRequest, wants_arrow: bool, limit: int
) -> bytes:
    """Return the response to an IPC stream, in Arrow or JSON, after its rows were committed.

    Args:
        predictor: scores and logs.
        deployment: the model that answers, and its experiments.
        request: its body is an uncompressed IPC stream.
        wants_arrow: whether to respond in Arrow.
        limit: maximum bytes of texts after dictionaries are resolved.

    Raises:
        Problem: 400, 413, 415 or 422 for the body, 415 if pyarrow is not installed, 503 if the log is unavailable.
    """
    model = deployment.model
    if can_log_blocks(deployment):
        try:
            return await predictor.predict_large(
                deployment, request, lambda marks: _complete(model, request, wants_arrow, limit, marks)
            )
        except Exception as error:
            # If the model failed, the batcher handles it: the class prior answers the rows at fault.
            if isinstance(error, Problem):
                raise
    return await predictor.predict(deployment, request._replace(codec=_RowCodec(wants_arrow, limit)))


def decode_stream(model: ServedModel, body: bytes, limit: int) -> DecodedTable:
    """Decode a body and validate its rows by the contract; raises like `predict`."""
    try:
        import pyarrow as pa
    except ImportError:
        detail = f"'{ARROW}' needs pyarrow, which is not installed; install the extra 'arrow', or send JSON"
        raise Problem(415, "unsupported-media-type", detail) from None
    # Arrow's default pool keeps some 10 MB more.
    pa.set_memory_pool(pa.system_memory_pool())
    contract = model.bundle.contract
    try:
        check_row_limit(count_announced_rows(body), "instances", model.schema)
        table = pa.ipc.open_stream(body, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise validation_errors.build_malformed_problem("arrow", str(error).partition("\n")[0]) from None
    if table.num_rows == 0:
        raise build_field_problem("instances", "must have at least 1 row")
    reject_duplicate_columns(table.column_names)
    row_validator = model.schema.row_validator
    named = row_validator.map_columns(table.column_names)
    absent = [column for column in contract.inputs if column.name not in named]
    if required := [column.name for column in absent if column.name in row_validator.required]:
        raise build_field_problem(required[0], REQUIRED)
    found = [CheckedColumn(row_validator, given, name, table[given], limit) for name, given in named.items()]
    if invalid := [one for one in found if one.invalid_rows]:
        listed = [one.describe_first_error() for one in invalid[: validation_errors.MAX_LISTED_ERRORS]]
        raise validation_errors.build_invalid_input_problem(sum(one.invalid_rows for one in invalid), listed)
    nothing = [None] * table.num_rows
    return DecodedTable(
        {one.column.name: one.array for one in found} | {column.name: to_array(column, nothing) for column in absent},
        pa.table({one.column.name: one.to_log_array() for one in found}),
    )


def _complete(
    model: ServedModel, request: PredictRequest, wants_arrow: bool, limit: int, marks: Marks
) -> CompletedRequest:
    table = decode_stream(model, request.body, limit)
    marks.append(time.perf_counter())
    predictions = model.bundle.to_predictions(parallel.run(model.bundle, model.bundle.encode(table.columns)))
    marks.append(time.perf_counter())
    ids = new_block_ids(len(predictions.values))
    response = _build_response_table(model, ids, predictions.values, predictions.output, model.degraded)
    scored = response.drop_columns("id").append_column("score", to_arrow(predictions.scores))
    inputs, outputs = (blocks.pack_table(part, blocks.COMPRESSION) for part in (table.inputs, scored))
    block = build_block(model.origin, ids, inputs, outputs, request.measure_latency_us())
    content = (
        blocks.pack_table(response)
        if wants_arrow
        else NATIVE.encode(model, Results(ids, model.formatter.write(predictions)))
    )
    marks.append(time.perf_counter())
    return CompletedRequest([block], content, model.formatter.name_classes(predictions))


def _build_response_table(
    model: ServedModel, ids: Sequence[str], values: np.ndarray, output: np.ndarray, degraded: bool
) -> Any:
    """Build the response as a `pyarrow.Table`; the schema's metadata names the model."""
    import pyarrow as pa

    if model.formatter.class_names:
        each = [to_arrow(probabilities) for probabilities in output.T]
        details = {"probabilities": pa.StructArray.from_arrays(each, model.formatter.class_names)}
    else:
        details = {"interval": pa.FixedSizeListArray.from_arrays(to_arrow(output[:, 1:].ravel()), 2)}
    facts = {"model_version": model.ref.version, "variant": model.variant, "degraded": str(degraded).lower()}
    names = to_arrow(np.array(ids, dtype=object))
    return pa.table({"id": names, "prediction": to_arrow(values), **details}).replace_schema_metadata(facts)


class _RowCodec:
    """The `Codec` of a request whose rows may go to different models."""

    def __init__(self, wants_arrow: bool, limit: int) -> None:
        self._wants_arrow = wants_arrow
        self._limit = limit

    def decode(self, model: ServedModel, body: bytes) -> list[dict[str, Any]]:
        return blocks.to_json_rows(decode_stream(model, body, self._limit).inputs)

    def encode(self, model: ServedModel, results: Results) -> bytes:
        """Return an Arrow stream, or the API's own JSON."""
        if not self._wants_arrow:
            return NATIVE.encode(model, results)
        predictions = from_json(f"[{','.join(results.outputs)}]")
        texts = isinstance(predictions[0]["prediction"], str)
        values = np.array([one["prediction"] for one in predictions], dtype=object if texts else None)
        if model.formatter.class_names:
            output = np.array([list(one["probabilities"].values()) for one in predictions])
        else:
            output = np.array([[one["prediction"], *one["interval"]] for one in predictions])
        table = _build_response_table(model, results.ids, values, output, results.is_degraded(model))
        if results.is_mixed:
            versions, variants = zip(*((one.ref.version, one.variant) for one in results.models), strict=True)
            for name, column in (("model_version", versions), ("variant", variants)):
                table = table.append_column(name, to_arrow(np.array(column, dtype=object)))
        return blocks.pack_table(table)
