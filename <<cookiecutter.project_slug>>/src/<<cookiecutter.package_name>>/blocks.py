"""Predictions that came as one Arrow table, as the log keeps them: two Arrow IPC streams, read back row by row.

`inputs` has the contract's columns in the contract's own types. `outputs` has `id`, `prediction`, `score`, and what a
row is told beside its prediction: `probabilities` (a struct) or `interval` (two numbers).
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import to_json

AT_ONCE = 1000
"""Rows made Python values at once."""


class Row(NamedTuple):
    """One prediction of a block; `inputs` and `output` are the JSON texts that it would have as a row of the log."""

    id: str
    key: Any
    inputs: str
    output: str
    score: float


def pack(table: Any) -> bytes:
    """A `pyarrow.Table` as an IPC stream."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def rows(inputs: bytes, outputs: bytes, key: str | None) -> Iterator[Row]:
    """The rows of a block; `key` is the column that names a row.

    Raises:
        ImportError: pyarrow is not installed.
    """
    import pyarrow as pa

    asked, told = (pa.ipc.open_stream(stream).read_all() for stream in (inputs, outputs))
    for at in range(0, told.num_rows, AT_ONCE):
        for row, output in zip(plain(asked.slice(at, AT_ONCE)), told.slice(at, AT_ONCE).to_pylist(), strict=True):
            name, score = output.pop("id"), output.pop("score")
            yield Row(name, row[key] if key else None, _text(row), _text(output), score)


def plain(table: Any) -> list[dict[str, Any]]:
    """The rows of a table of inputs as JSON would carry them."""
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in table.to_pylist()
    ]


def _text(content: dict[str, Any]) -> str:
    return to_json(content).decode()
