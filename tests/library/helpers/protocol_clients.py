"""The API as clients of each protocol see it: stock ones where there are any, unmodified."""

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
    """What was told of each row: probabilities or the interval are in `beside`, which not every protocol has."""

    ids: list[str]
    predictions: list[Any]
    beside: list[list[float]] | None


def send_native(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """The API's own protocol."""
    return _listed(check_ok(client.post("/predict", json={"instances": rows})).json()["predictions"])


def send_arrow_for_json(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Columns in, JSON out."""
    return _listed(check_ok(send_arrow(client, to_arrow_stream(rows))).json()["predictions"])


def send_arrow_both_ways(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Columns in and out."""
    answer = check_ok(send_arrow(client, to_arrow_stream(rows), Accept=ARROW))
    assert answer.headers["content-type"] == ARROW
    return _listed(pa.ipc.open_stream(answer.content).read_all().to_pylist())


def send_arrow(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    """POST an IPC stream."""
    return client.post("/predict", content=body, headers={"Content-Type": ARROW, **headers})


def to_arrow_stream(table: Rows | pa.Table, **options: Any) -> bytes:
    """Rows, or a table, as an Arrow IPC stream."""
    table = table if isinstance(table, pa.Table) else pa.Table.from_pylist([dict(row) for row in table])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def send_records(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """MLflow's `dataframe_records`."""
    return _invoked(client.post("/invocations", json={"dataframe_records": rows}))


def send_split(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """MLflow's `dataframe_split`."""
    table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows], "index": list(range(len(rows)))}
    return _invoked(client.post("/invocations", json={"dataframe_split": table}))


def send_instances(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """TensorFlow Serving's `instances`, by row."""
    return _invoked(client.post("/invocations", json={"instances": rows}))


def send_instances_by_column(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """The same, by column."""
    return _invoked(client.post("/invocations", json={"instances": to_columns(rows)}))


def send_inputs(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """TensorFlow Serving's `inputs`."""
    return _invoked(client.post("/invocations", json={"inputs": to_columns(rows)}))


def send_csv_rows(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """SageMaker's CSV."""
    return _invoked(send_csv(client, to_csv(rows)))


def send_csv(client: httpx.Client, body: str | bytes) -> httpx.Response:
    """POST a table as text."""
    return client.post("/invocations", content=body, headers={"Content-Type": "text/csv; charset=utf-8"})


def to_csv(rows: Rows) -> str:
    """Rows as a CSV file; nothing where they have None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def send_tensors(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Triton's client, tensors as JSON."""
    return infer(client, rows, binary=False)


def send_binary_tensors(client: httpx.Client, rows: Rows) -> ProtocolResult:
    """Triton's client as it is by default: tensors as bytes, both ways."""
    return infer(client, rows, binary=True)


def infer(client: httpx.Client, rows: Rows, binary: bool) -> ProtocolResult:
    """All outputs of the rows, by Triton's client and what the model's own metadata say."""
    with triton_client(client) as speaker:
        name = client.get("/model").json()["name"]
        described = speaker.get_model_metadata(name)
        asked = [build_tensor(one, [row.get(one["name"]) for row in rows], binary) for one in described["inputs"]]
        outputs = [one["name"] for one in described["outputs"]]
        wanted = None if binary else [triton.InferRequestedOutput(one, binary_data=False) for one in outputs]
        answer = speaker.infer(name, [one for one in asked if one], outputs=wanted)
        ids, predictions, beside = (answer.as_numpy(one).tolist() for one in ("id", "prediction", outputs[1]))
    return ProtocolResult([_text(one) for one in ids], [_text(one) for one in predictions], beside)


def triton_client(client: httpx.Client) -> triton.InferenceServerClient:
    """Triton's client of the same server."""
    return triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}")


def build_tensor(described: Mapping[str, Any], values: Sequence[Any], binary: bool) -> triton.InferInput | None:
    """Values in the datatype that the metadata name; none where all are missing."""
    if all(value is None for value in values):
        return None
    kind = described["datatype"]
    gap = {"FP64": np.nan, "BYTES": MISSING}.get(kind)
    array: np.ndarray = np.array([gap if value is None else value for value in values], dtype=DTYPES[kind])
    made = triton.InferInput(described["name"], list(array.shape), kind)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def to_columns(rows: Rows) -> dict[str, list[Any]]:
    """Rows turned into columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def check_ok(response: httpx.Response) -> httpx.Response:
    """An answer that is one."""
    assert response.status_code == httpx.codes.OK, response.text
    return response


def _invoked(response: httpx.Response) -> ProtocolResult:
    told = check_ok(response).json()
    return ProtocolResult(told["ids"], told["predictions"], None)


def _listed(told: Sequence[Mapping[str, Any]]) -> ProtocolResult:
    beside = [list(one["probabilities"].values()) if "probabilities" in one else list(one["interval"]) for one in told]
    return ProtocolResult([one["id"] for one in told], [one["prediction"] for one in told], beside)


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
