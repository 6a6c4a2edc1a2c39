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


class Told(NamedTuple):
    """What was told of each row: probabilities or the interval are in `beside`, which not every protocol has."""

    ids: list[str]
    predictions: list[Any]
    beside: list[list[float]] | None


def own(client: httpx.Client, rows: Rows) -> Told:
    """The API's own protocol."""
    return _listed(checked(client.post("/predict", json={"instances": rows})).json()["predictions"])


def arrow_to_json(client: httpx.Client, rows: Rows) -> Told:
    """Columns in, JSON out."""
    return _listed(checked(send_arrow(client, stream(rows))).json()["predictions"])


def arrow(client: httpx.Client, rows: Rows) -> Told:
    """Columns in and out."""
    answer = checked(send_arrow(client, stream(rows), Accept=ARROW))
    assert answer.headers["content-type"] == ARROW
    return _listed(pa.ipc.open_stream(answer.content).read_all().to_pylist())


def send_arrow(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    """POST an IPC stream."""
    return client.post("/predict", content=body, headers={"Content-Type": ARROW, **headers})


def stream(table: Rows | pa.Table, **options: Any) -> bytes:
    """Rows, or a table, as an Arrow IPC stream."""
    table = table if isinstance(table, pa.Table) else pa.Table.from_pylist([dict(row) for row in table])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def records(client: httpx.Client, rows: Rows) -> Told:
    """MLflow's `dataframe_records`."""
    return _invoked(client.post("/invocations", json={"dataframe_records": rows}))


def split(client: httpx.Client, rows: Rows) -> Told:
    """MLflow's `dataframe_split`."""
    table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows], "index": list(range(len(rows)))}
    return _invoked(client.post("/invocations", json={"dataframe_split": table}))


def instances(client: httpx.Client, rows: Rows) -> Told:
    """TensorFlow Serving's `instances`, by row."""
    return _invoked(client.post("/invocations", json={"instances": rows}))


def instances_by_column(client: httpx.Client, rows: Rows) -> Told:
    """The same, by column."""
    return _invoked(client.post("/invocations", json={"instances": columns(rows)}))


def inputs(client: httpx.Client, rows: Rows) -> Told:
    """TensorFlow Serving's `inputs`."""
    return _invoked(client.post("/invocations", json={"inputs": columns(rows)}))


def comma_separated(client: httpx.Client, rows: Rows) -> Told:
    """SageMaker's CSV."""
    return _invoked(send_csv(client, csv_of(rows)))


def send_csv(client: httpx.Client, body: str | bytes) -> httpx.Response:
    """POST a table as text."""
    return client.post("/invocations", content=body, headers={"Content-Type": "text/csv; charset=utf-8"})


def csv_of(rows: Rows) -> str:
    """Rows as a CSV file; nothing where they have None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def tensors(client: httpx.Client, rows: Rows) -> Told:
    """Triton's client, tensors as JSON."""
    return infer(client, rows, binary=False)


def binary_tensors(client: httpx.Client, rows: Rows) -> Told:
    """Triton's client as it is by default: tensors as bytes, both ways."""
    return infer(client, rows, binary=True)


def infer(client: httpx.Client, rows: Rows, binary: bool) -> Told:
    """All outputs of the rows, by Triton's client and what the model's own metadata say."""
    with triton_client(client) as speaker:
        name = client.get("/model").json()["name"]
        described = speaker.get_model_metadata(name)
        asked = [tensor(one, [row.get(one["name"]) for row in rows], binary) for one in described["inputs"]]
        outputs = [one["name"] for one in described["outputs"]]
        wanted = None if binary else [triton.InferRequestedOutput(one, binary_data=False) for one in outputs]
        answer = speaker.infer(name, [one for one in asked if one], outputs=wanted)
        ids, predictions, beside = (answer.as_numpy(one).tolist() for one in ("id", "prediction", outputs[1]))
    return Told([_text(one) for one in ids], [_text(one) for one in predictions], beside)


def triton_client(client: httpx.Client) -> triton.InferenceServerClient:
    """Triton's client of the same server."""
    return triton.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}")


def tensor(described: Mapping[str, Any], values: Sequence[Any], binary: bool) -> triton.InferInput | None:
    """Values in the datatype that the metadata name; none where all are missing."""
    if all(value is None for value in values):
        return None
    kind = described["datatype"]
    gap = {"FP64": np.nan, "BYTES": MISSING}.get(kind)
    array: np.ndarray = np.array([gap if value is None else value for value in values], dtype=DTYPES[kind])
    made = triton.InferInput(described["name"], list(array.shape), kind)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def columns(rows: Rows) -> dict[str, list[Any]]:
    """Rows turned into columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def checked(response: httpx.Response) -> httpx.Response:
    """An answer that is one."""
    assert response.status_code == httpx.codes.OK, response.text
    return response


def _invoked(response: httpx.Response) -> Told:
    told = checked(response).json()
    return Told(told["ids"], told["predictions"], None)


def _listed(told: Sequence[Mapping[str, Any]]) -> Told:
    beside = [list(one["probabilities"].values()) if "probabilities" in one else list(one["interval"]) for one in told]
    return Told([one["id"] for one in told], [one["prediction"] for one in told], beside)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


SPEAKERS = (
    arrow,
    arrow_to_json,
    records,
    split,
    instances,
    instances_by_column,
    inputs,
    comma_separated,
    tensors,
    binary_tensors,
)
