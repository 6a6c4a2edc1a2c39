"""Predictions that came as one request of many rows, as the log keeps them, read back row by row.

A block is two texts in JSON, or, of a request in Arrow, two IPC streams. `inputs` has the rows as they were checked,
column by column; of Arrow in the contract's own types. `outputs` has for each row its `score` and what it is told:
`prediction`, and `probabilities` or `interval`; in JSON as lists of scores and of what is told.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from flywheel_ml.prediction_log.rows import parse_microseconds

UnpackedRow = tuple[dict[str, Any], dict[str, Any], float]
"""A row, what it was told, and its score."""
COMPRESSION = "lz4"
"""Of blocks in Arrow: less than half the bytes to be written, in less time than writing them would take."""
ROWS_PER_SLICE = 1000
"""Rows made Python values at once."""


class BlockRow(NamedTuple):
    """One prediction of a block; `inputs` and `output` are the JSON texts that it would have as a row of the log."""

    entity_id: str | None
    event_timestamp_us: int | None
    inputs: str
    output: str
    score: float


def pack_table(table: Any, compression: str | None = None) -> bytes:
    """A `pyarrow.Table` as an IPC stream."""
    import pyarrow as pa

    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def pack_inputs(instances: Sequence[Mapping[str, Any]]) -> bytes:
    """`inputs` in JSON; what a row leaves out, and another has, is null."""
    try:
        columns = {name: [row[name] for row in instances] for name in max(instances, key=len)}
    except KeyError:
        names = dict.fromkeys(name for row in instances for name in row)
        columns = {name: [row.get(name) for row in instances] for name in names}
    return to_json(columns)


def pack_outputs(told: Sequence[str], scores: Sequence[str]) -> bytes:
    """`outputs` in JSON; `told` are JSON objects, `scores` numbers as JSON has them."""
    return f'{{"score":[{",".join(scores)}],"told":[{",".join(told)}]}}'.encode()


def unpack(
    inputs: bytes, outputs: bytes, entity_column: str | None = None, event_timestamp_column: str | None = None
) -> Iterator[BlockRow]:
    """The rows of a block; the two columns hold what a row is called, and when it happened.

    Raises:
        ImportError: the block is in Arrow, and pyarrow is not installed.
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
    columns, answered = from_json(inputs), from_json(outputs)
    # A request may bring rows without any column.
    asked = [{name: values[at] for name, values in columns.items()} for at in range(len(answered["told"]))]
    return zip(asked, answered["told"], answered["score"], strict=True)


def _unpack_arrow(inputs: bytes, outputs: bytes) -> Iterator[UnpackedRow]:
    import pyarrow as pa

    asked, told = (pa.ipc.open_stream(stream).read_all() for stream in (inputs, outputs))
    for at in range(0, told.num_rows, ROWS_PER_SLICE):
        for row, output in zip(
            to_json_rows(asked.slice(at, ROWS_PER_SLICE)), told.slice(at, ROWS_PER_SLICE).to_pylist(), strict=True
        ):
            yield row, output, output.pop("score")


def to_json_rows(table: Any) -> list[dict[str, Any]]:
    """The rows of a table of inputs as JSON would carry them."""
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in table.to_pylist()
    ]


def _to_text(content: dict[str, Any]) -> str:
    return to_json(content).decode()
