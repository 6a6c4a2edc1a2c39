"""Clients of each protocol of the API; unmodified stock clients where they exist."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import tritonclient.http as triton

from flywheel_ml.core.contract import MISSING
from flywheel_ml.serving.codecs.arrow import ARROW

Rows = Sequence[Mapping[str, Any]]

DTYPES = {"FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_, "BYTES": np.object_}


class ProtocolResult(NamedTuple):
    """Answers by row. `details` has probabilities or intervals; None if the protocol lacks them."""

    ids: list[str]
    predictions: list[Any]
    details: list[list[float]] | None


def send_native(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send rows by the API's own protocol."""
    return _listed(check_ok(client.post("/predict", json={"instances": rows})).json()["predictions"])


def send_arrow_for_json(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send columns in Arrow, receive JSON."""
    return _listed(check_ok(send_arrow(client, to_arrow_stream(rows))).json()["predictions"])


def send_arrow_both_ways(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send and receive columns in Arrow."""
    answer = check_ok(send_arrow(client, to_arrow_stream(rows), Accept=ARROW))
    assert answer.headers["content-type"] == ARROW
    return _listed(pa.ipc.open_stream(answer.content).read_all().to_pylist())


def send_arrow(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    """POST an IPC stream."""
    return client.post("/predict", content=body, headers={"Content-Type": ARROW, **headers})


def to_arrow_stream(table: Rows | pa.Table, **options: Any) -> bytes:
    """Serialize rows, or a table, to an Arrow IPC stream."""
    table = table if isinstance(table, pa.Table) else pa.Table.from_pylist([dict(row) for row in table])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def send_records(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send MLflow's `dataframe_records`."""
    return _invoked(client.post("/invocations", json={"dataframe_records": rows}))


def send_split(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send MLflow's `dataframe_split`."""
    table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows], "index": list(range(len(rows)))}
    return _invoked(client.post("/invocations", json={"dataframe_split": table}))


def send_instances(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send TensorFlow Serving's `instances`, by row."""
    return _invoked(client.post("/invocations", json={"instances": rows}))


def send_instances_by_column(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send TensorFlow Serving's `instances`, by column."""
    return _invoked(client.post("/invocations", json={"instances": to_columns(rows)}))


def send_inputs(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send TensorFlow Serving's `inputs`."""
    return _invoked(client.post("/invocations", json={"inputs": to_columns(rows)}))


def send_csv_rows(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send SageMaker's CSV."""
    return _invoked(send_csv(client, to_csv(rows)))


def send_csv(client: httpx.Client, body: str | bytes) -> httpx.Response:
    """POST a table as text."""
    return client.post("/invocations", content=body, headers={"Content-Type": "text/csv; charset=utf-8"})


def to_csv(rows: Rows) -> str:
    """Serialize rows to CSV; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def send_tensors(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send tensors as JSON with Triton's client."""
    return infer(client, rows, binary=False)


def send_binary_tensors(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Send and receive tensors as bytes with Triton's client, its default."""
    return infer(client, rows, binary=True)


def infer(client: httpx.Client, rows: Rows, binary: bool) -> ProtocolResult:
    """Request all outputs with Triton's client, according to the model's metadata."""
    with triton_client(client) as speaker:
        name = client.get("/model").json()["name"]
        described = speaker.get_model_metadata(name)
        asked = [build_tensor(one, [row.get(one["name"]) for row in rows], binary) for one in described["inputs"]]
        outputs = [one["name"] for one in described["outputs"]]
        wanted = None if binary else [triton.InferRequestedOutput(one, binary_data=False) for one in outputs]
        answer = speaker.infer(name, [one for one in asked if one], outputs=wanted)
        ids, predictions, details = (answer.as_numpy(one).tolist() for one in ("id", "prediction", outputs[1]))
    return ProtocolResult([_text(one) for one in ids], [_text(one) for one in predictions], details)


def triton_client(client: httpx.Client) -> triton.InferenceServerClient:
    """Return Triton's client for the same server."""
    return triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}")


def build_tensor(described: Mapping[str, Any], values: Sequence[Any], binary: bool) -> triton.InferInput | None:
    """Build a tensor with the datatype of the metadata; None if all values are missing."""
    if all(value is None for value in values):
        return None
    kind = described["datatype"]
    gap = {"FP64": np.nan, "BYTES": MISSING}.get(kind)
    array: np.ndarray = np.array([gap if value is None else value for value in values], dtype=DTYPES[kind])
    made = triton.InferInput(described["name"], list(array.shape), kind)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def to_columns(rows: Rows) -> dict[str, list[Any]]:
    """Transpose rows to columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def check_ok(response: httpx.Response) -> httpx.Response:
    """Check that a response has status 200."""
    assert response.status_code == httpx.codes.OK, response.text
    return response


def _invoked(response: httpx.Response) -> ProtocolResult:
    told = check_ok(response).json()
    return ProtocolResult(told["ids"], told["predictions"], None)


def _listed(told: Sequence[Mapping[str, Any]]) -> ProtocolResult:
    details = [list(one["probabilities"].values()) if "probabilities" in one else list(one["interval"]) for one in told]
    return ProtocolResult([one["id"] for one in told], [one["prediction"] for one in told], details)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


CLIENTS = (
    send_arrow_both_ways,
    send_arrow_for_json,
    send_records,
    send_split,
    send_instances,
    send_instances_by_column,
    send_inputs,
    send_csv_rows,
    send_tensors,
    send_binary_tensors,
)
