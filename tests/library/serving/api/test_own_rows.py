"""Every row of the user's own table, without its target, is a valid request in every protocol."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.prediction_log import LoggedPrediction, Reader
from flywheel_ml.prediction_log.rows import parse_microseconds
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils import config_model
from library.helpers import protocol_clients, rows
from library.helpers.protocol_clients import ProtocolResult
from library.helpers.servers import Server
from library.loop.test_tasks import adapted

Instance = dict[str, Any]
Speaker = Callable[[httpx.Client, list[Instance]], ProtocolResult]

COLUMNS: list[dict[str, Any]] = [
    {"name": "key", "source": "id", "type": "string", "role": "id"},
    {
        "name": "when",
        "type": "datetime",
        "role": "time",
        "datetime_features": [],
        "parse": {"date_formats": ["%d.%m.%Y %H:%M"]},
    },
    {"name": "prediction_given", "source": "prediction", "type": "float", "range": [0, 10], "nullable": True},
    {"name": "count", "type": "integer", "range": [0, 50], "nullable": True},
    {"name": "owner", "type": "boolean", "parse": {"true_values": ["ja"], "false_values": ["nein"]}},
    {
        "name": "price",
        "type": "float",
        "range": [0, 9000],
        "parse": {"decimal": ",", "thousands": ".", "symbols": ["€"]},
    },
    {"name": "größe (m²)", "type": "float"},
    {"name": "kind", "type": "string", "categories": ["a", "b"], "nullable": True, "parse": {"na_values": ["keine"]}},
    {"name": "note", "type": "string", "role": "ignored"},
    {"name": "w", "type": "float", "role": "weight"},
    {
        "name": "sold",
        "source": "verkauft",
        "type": "boolean",
        "role": "target",
        "parse": {"true_values": ["ja"], "false_values": ["nein"]},
    },
]


@pytest.fixture(scope="module")
def contract() -> Contract:
    return config_model.parse({"name": "odd", "columns": COLUMNS}, Contract, "contract.yaml")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, contract: Contract, params: Params) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("own-rows")
    path = make_bundle(home / "bundle", rows.make_table(contract, 600), contract, adapted(params, contract))
    ServingFolder(home / "serving", path).roll_out("1")
    with Server(home) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def canonical(contract: Contract) -> list[Instance]:
    """Rows in the contract's own names and values."""
    made = json_rows(rows.make_table(contract, 600).tail(30), contract)
    return [{**row, "key": f"k{at}", "price": round(row["price"], 2)} for at, row in enumerate(made)]


def as_written(row: Instance) -> Instance:
    """The same row as the user's file has it."""
    when = datetime.fromisoformat(row["when"])
    return {
        "id": row["key"],
        "when": f"{when:%d.%m.%Y %H:%M}",
        "prediction": "NaN" if row["prediction_given"] is None else f" {row['prediction_given']!r}",
        "count": "" if row["count"] is None else f"{row['count']}.0",
        "owner": "Ja" if row["owner"] else "nein",
        "price": f"{row['price']:,.2f} €".translate(str.maketrans(".,", ",.")),
        "größe (m²)": repr(row["größe (m²)"]),
        "kind": row["kind"] and f"{row['kind']} ",
        "note": "not looked at",
        "w": "?",
    }


def as_pandas_reads_it(row: Instance) -> Instance:
    """The same row after pandas has read the file without any options."""
    written = as_written(row)
    nan = float("nan")
    numbers = {
        "prediction": nan if row["prediction_given"] is None else row["prediction_given"],
        "count": nan if row["count"] is None else float(row["count"]),
        "größe (m²)": row["größe (m²)"],
    }
    return written | numbers


def tensors_of_text(client: httpx.Client, sent: list[Instance]) -> ProtocolResult:
    """The Open Inference Protocol, every column a tensor of texts."""
    kinds = {name: "FP64" if isinstance(value, float) else "BYTES" for name, value in sent[0].items()}
    inputs = [
        {
            "name": name,
            "datatype": kind,
            "shape": [len(sent)],
            "data": [None if row[name] != row[name] else row[name] for row in sent],
        }
        for name, kind in kinds.items()
    ]
    name = client.get("/model").json()["name"]
    told = protocol_clients.check_ok(client.post(f"/v2/models/{name}/infer", json={"inputs": inputs})).json()["outputs"]
    data = {one["name"]: one["data"] for one in told}
    return ProtocolResult(data["id"], data["prediction"], None)


def send_native_with_nan(client: httpx.Client, sent: list[Instance]) -> ProtocolResult:
    """The API's own protocol, with the literal NaN that Python's json writes."""
    content = json.dumps({"instances": sent})
    answer = client.post("/predict", content=content, headers={"Content-Type": "application/json"})
    told = protocol_clients.check_ok(answer).json()["predictions"]
    return ProtocolResult([one["id"] for one in told], [one["prediction"] for one in told], None)


def records_with_nan(client: httpx.Client, sent: list[Instance]) -> ProtocolResult:
    content = json.dumps({"dataframe_split": {"columns": list(sent[0]), "data": [list(row.values()) for row in sent]}})
    answer = client.post("/invocations", content=content, headers={"Content-Type": "application/json"})
    told = protocol_clients.check_ok(answer).json()
    return ProtocolResult(told["ids"], told["predictions"], None)


def read_logged(server: Server, told: ProtocolResult) -> list[LoggedPrediction]:
    found = {one.prediction.id: one for one in Reader(server.log).predictions()}
    return [found[name] for name in told.ids]


WRITTEN = (
    protocol_clients.send_native,
    protocol_clients.send_arrow_for_json,
    protocol_clients.send_records,
    protocol_clients.send_instances_by_column,
    protocol_clients.send_inputs,
    protocol_clients.send_csv_rows,
    tensors_of_text,
)
FROM_PANDAS = (
    send_native_with_nan,
    records_with_nan,
    protocol_clients.send_arrow_both_ways,
    protocol_clients.send_csv_rows,
    tensors_of_text,
)


@pytest.mark.parametrize(
    ("write", "speak"),
    [*((as_written, speak) for speak in WRITTEN), *((as_pandas_reads_it, speak) for speak in FROM_PANDAS)],
)
def test_row_is_parsed_and_logged_in_every_notation(
    server: Server,
    client: httpx.Client,
    canonical: list[Instance],
    write: Callable[[Instance], Instance],
    speak: Speaker,
) -> None:
    wanted, told = protocol_clients.send_native(client, canonical), speak(client, [write(row) for row in canonical])
    assert told.predictions == wanted.predictions
    for row, mine, other in zip(canonical, read_logged(server, told), read_logged(server, wanted), strict=True):
        present = {name: value for name, value in row.items() if value is not None}
        assert {n: v for n, v in json.loads(mine.prediction.inputs).items() if v is not None} == present
        assert mine.prediction.score == other.prediction.score
        assert mine.prediction.entity_id == row["key"]
        assert mine.prediction.event_timestamp_us == parse_microseconds(row["when"])


def test_id_time_and_gaps_may_be_left_out(server: Server, client: httpx.Client, canonical: list[Instance]) -> None:
    needed = ("owner", "price", "größe (m²)")
    sent = {name: value for name, value in as_written(canonical[0]).items() if name in needed}
    for speak in (
        protocol_clients.send_native,
        protocol_clients.send_arrow_both_ways,
        protocol_clients.send_split,
        protocol_clients.send_csv_rows,
        tensors_of_text,
    ):
        (found,) = read_logged(server, speak(client, [sent]))
        assert json.loads(found.prediction.inputs) == {name: canonical[0][name] for name in needed}
        assert (found.prediction.entity_id, found.prediction.event_timestamp_us) == (None, None)


@pytest.mark.parametrize("name", ["sold", "verkauft"])
@pytest.mark.parametrize("path", ["/predict", "/explain", "/invocations", "arrow", "csv", "v2"])
def test_target_column_is_rejected_with_a_hint(
    client: httpx.Client, canonical: list[Instance], name: str, path: str
) -> None:
    sent = [{**as_written(canonical[0]), name: True}]
    if path == "arrow":
        answer = protocol_clients.send_arrow(client, protocol_clients.to_arrow_stream(sent))
    elif path == "csv":
        answer = protocol_clients.send_csv(client, protocol_clients.to_csv(sent))
    elif path == "v2":
        tensor = {"name": name, "datatype": "BOOL", "shape": [1], "data": [True]}
        answer = client.post("/v2/models/odd/infer", json={"inputs": [tensor]})
    else:
        answer = client.post(path, json={"instances": sent})
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY
    (fault,) = answer.json()["errors"]
    assert fault["field"] == name
    assert "/feedback" in fault["rule"]


def test_an_explanation_takes_the_row_as_it_is_written(client: httpx.Client, canonical: list[Instance]) -> None:
    answers = [client.post("/explain", json={"instances": [one]}) for one in (canonical[0], as_written(canonical[0]))]
    assert answers[0].json() == protocol_clients.check_ok(answers[1]).json()


def test_label_is_parsed_like_the_target(server: Server, client: httpx.Client, canonical: list[Instance]) -> None:
    told = protocol_clients.send_native(client, canonical[:2])
    labels = [{"id": told.ids[0], "label": "Ja "}, {"id": told.ids[1], "label": "NEIN"}]
    assert client.post("/feedback", json={"labels": labels}).json() == {"accepted": 2}
    assert [one.label for one in read_logged(server, told)] == ["true", "false"]
    for label, rule in (("NA", "must not be missing"), ("vielleicht", "must be true or false")):
        refused = client.post("/feedback", json={"labels": [{"id": told.ids[0], "label": label}]})
        assert [fault["rule"] for fault in refused.json()["errors"]] == [rule]
