"""Packs the predictions of one large request into a block, and unpacks a block row by row.

A block holds two JSON texts, or two IPC streams if the request came in Arrow. `inputs` has the validated rows, column
by column; in Arrow with the contract's types. `outputs` has the `score` of each row and its answer: `prediction`, and
`probabilities` or `interval`. In JSON these are two lists, `score` and `told`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from flywheel_ml.prediction_log.rows import parse_microseconds

UnpackedRow = tuple[dict[str, Any], dict[str, Any], float]
"""The inputs of a row, its answer and its score."""
COMPRESSION = "lz4"
"""Codec of Arrow blocks. It halves the bytes, and takes less time than writing the saved bytes would."""
ROWS_PER_SLICE = 1000
"""Arrow rows converted to Python values at a time."""


class BlockRow(NamedTuple):
    """One prediction of a block. `inputs` and `output` are JSON texts, as in a `Prediction`."""

    entity_id: str | None
    event_timestamp_us: int | None
    inputs: str
    output: str
    score: float


def pack_table(table: Any, compression: str | None = None) -> bytes:
    """Serialize a `pyarrow.Table` to an IPC stream."""
    import pyarrow as pa

    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def pack_inputs(instances: Sequence[Mapping[str, Any]]) -> bytes:
    """Serialize `inputs` to JSON; a column that only some rows have is null in the others."""
    try:
        columns = {name: [row[name] for row in instances] for name in max(instances, key=len)}
    except KeyError:
        names = dict.fromkeys(name for row in instances for name in row)
        columns = {name: [row.get(name) for row in instances] for name in names}
    return to_json(columns)


def pack_outputs(answers: Sequence[str], scores: Sequence[str]) -> bytes:
    """Serialize `outputs` to JSON, from answers as JSON objects and scores as JSON numbers."""
    return f'{{"score":[{",".join(scores)}],"told":[{",".join(answers)}]}}'.encode()


def unpack(
    inputs: bytes, outputs: bytes, entity_column: str | None = None, event_timestamp_column: str | None = None
) -> Iterator[BlockRow]:
    """Yield the rows of a block; two columns of `inputs` may hold the entity and the event time of a row.

    Raises:
        ImportError: the block is in Arrow and pyarrow is not installed.
    """
    for row, output, score in _unpack_json(inputs, outputs) if inputs[:1] == b"{" else _unpack_arrow(inputs, outputs):
        entity, happened = row.get(entity_column), row.get(event_timestamp_column)  # type: ignore[arg-type]
        yield BlockRow(
            None if entity is None else str(entity),
            parse_microseconds(happened),
            _to_text(row),
            _to_text(output),
            score,
        )


def _unpack_json(inputs: bytes, outputs: bytes) -> Iterable[UnpackedRow]:
    columns, answers = from_json(inputs), from_json(outputs)
    # The rows of a request may have no column at all.
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(answers["told"]))]
    return zip(rows, answers["told"], answers["score"], strict=True)


def _unpack_arrow(inputs: bytes, outputs: bytes) -> Iterator[UnpackedRow]:
    import pyarrow as pa

    input_table, output_table = (pa.ipc.open_stream(stream).read_all() for stream in (inputs, outputs))
    for at in range(0, output_table.num_rows, ROWS_PER_SLICE):
        for row, output in zip(
            to_json_rows(input_table.slice(at, ROWS_PER_SLICE)),
            output_table.slice(at, ROWS_PER_SLICE).to_pylist(),
            strict=True,
        ):
            yield row, output, output.pop("score")


def to_json_rows(table: Any) -> list[dict[str, Any]]:
    """Convert an Arrow table of inputs to rows of JSON values."""
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in table.to_pylist()
    ]


def _to_text(content: dict[str, Any]) -> str:
    return to_json(content).decode()
