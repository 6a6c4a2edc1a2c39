"""A row gets the same prediction and one log row in every protocol."""

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tritonclient.utils import InferenceServerException

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.parsing.rules import REQUIRED, build_rules
from flywheel_ml.prediction_log import Reader
from flywheel_ml.serving.codecs.inference_documents import ModelMetadata
from flywheel_ml.serving.errors.problems import MEDIA_TYPE, ProblemDocument
from library.helpers import protocol_clients, rows
from library.helpers.protocol_clients import CLIENTS, ProtocolResult, send_csv
from library.helpers.servers import Server

Instance = dict[str, Any]
Instances = list[Instance]
Speaker = Callable[[httpx.Client, Instances], ProtocolResult]


@pytest.fixture
def number(contract: Contract) -> Column:
    """A number with bounds, that has to be there."""
    wanted = "number with a range"
    return rows.find_column(
        contract, lambda one: one.type == "float" and one.range is not None and not one.nullable, wanted
    )


@pytest.fixture
def text(contract: Contract) -> Column:
    return rows.find_column(contract, lambda one: one.type == "string", "string")


@pytest.fixture(scope="module")
def model(client: httpx.Client) -> str:
    return str(client.get("/model").json()["name"])


def faults(response: httpx.Response) -> list[tuple[str | None, int | None, str]]:
    """Field, row and rule of each fault of a 422."""
    assert response.status_code == httpx.codes.UNPROCESSABLE_ENTITY, response.text
    return [(fault.field, fault.instance, fault.rule) for fault in problem_of(response).errors or []]


def problem_of(response: httpx.Response) -> ProblemDocument:
    assert response.headers["content-type"] == MEDIA_TYPE
    return ProblemDocument.model_validate_json(response.content)


@pytest.mark.parametrize("speak", CLIENTS, ids=lambda speak: speak.__name__)
def test_every_protocol_gets_the_same_predictions_and_log(
    server: Server, client: httpx.Client, contract: Contract, instances: Instances, speak: Speaker
) -> None:
    key = contract.id
    named = {} if key is None else {key.name: "one" if key.type == "string" else 1}
    sent = [{**row, **named} for row in instances[:20]]
    wanted, told = protocol_clients.send_native(client, sent), speak(client, sent)
    assert told.predictions == wanted.predictions
    assert {type(one) for one in told.predictions} == {type(one) for one in wanted.predictions}
    assert told.details in (None, wanted.details)
    found = [one.prediction for one in Reader(server.log).predictions()]
    logged = {one.id: one for one in found if one.id in {*wanted.ids, *told.ids}}
    assert len(logged) == 40 == sum(one.id in logged for one in found)
    for mine, other in zip(wanted.ids, told.ids, strict=True):
        a, b = logged[mine], logged[other]
        # JSON objects: what was left out and what was null mean the same.
        assert {name: value for name, value in json.loads(b.inputs).items() if value is not None} == {
            name: value for name, value in json.loads(a.inputs).items() if value is not None
        }
        assert json.loads(b.output) == json.loads(a.output)
        assert (b.score, b.entity_id, b.variant, b.model_version) == (a.score, a.entity_id, a.variant, a.model_version)
        assert b.latency_us > 0


@pytest.mark.parametrize(
    "speak", [protocol_clients.send_arrow_both_ways, protocol_clients.send_split, protocol_clients.send_binary_tensors]
)
def test_predictions_of_every_protocol_can_be_labelled(
    client: httpx.Client, instances: Instances, speak: Speaker
) -> None:
    ids = speak(client, instances[:3]).ids
    labelled = client.post("/feedback", json={"labels": [{"id": one, "label": True} for one in ids]})
    assert labelled.json() == {"accepted": 3}
    beyond = client.post("/feedback", json={"labels": [{"id": f"{ids[0][:-8]}00000003", "label": True}]})
    assert beyond.status_code == httpx.codes.NOT_FOUND


class TestInvocations:
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_ping_says_that_a_model_is_there(self, client: httpx.Client, method: str) -> None:
        assert client.request(method, "/ping").status_code == httpx.codes.OK

    def test_missing_values_and_integers_of_pandas_are_accepted(
        self, client: httpx.Client, contract: Contract, instances: Instances
    ) -> None:
        numeric = {column.name for column in contract.inputs if column.is_numeric and column.type != "boolean"}
        plain = instances[0]
        pandas = {
            name: float("nan") if value is None and name in numeric else float(value) if name in numeric else value
            for name, value in plain.items()
        }
        body = json.dumps({"dataframe_records": [pandas]})
        answer = client.post("/invocations", content=body, headers={"Content-Type": "application/json"})
        assert (
            protocol_clients.check_ok(answer).json()["predictions"]
            == protocol_clients.send_native(client, [plain]).predictions
        )

    def test_a_value_outside_the_contract_is_named_with_its_row(
        self, client: httpx.Client, instances: Instances, number: Column
    ) -> None:
        assert number.range is not None
        wrong = [instances[0], {**instances[1], number.name: number.range[1] * 2 + 1}]
        (rule,) = (rule.message for rule in build_rules(number))
        for body in ({"dataframe_records": wrong}, {"instances": protocol_clients.to_columns(wrong)}):
            assert faults(client.post("/invocations", json=body)) == [(number.name, 1, rule)]
        assert faults(send_csv(client, protocol_clients.to_csv(wrong))) == [(number.name, 1, rule)]

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ([], None),
            ({}, None),
            ({"instances": [], "inputs": []}, None),
            ({"dataframe_split": {"data": [[1]]}}, "dataframe_split"),
            ({"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, "dataframe_split"),
            ({"dataframe_split": {"columns": ["a", "a"], "data": [[1, 1]]}}, "a"),
            ({"dataframe_split": {"columns": ["a"], "data": [[1]] * 201}}, "dataframe_split"),
            ({"dataframe_records": {"a": 1}}, "dataframe_records"),
            ({"dataframe_records": []}, "instances"),
            ({"instances": {"a": [1], "b": []}}, "b"),
            ({"instances": {"a": 1}}, "a"),
            ({"instances": [[1.0, 2.0]]}, None),
            ({"inputs": 3}, "inputs"),
            ({"inputs": {"no such column": [1]}}, "no such column"),
            ({"dataframe_record": []}, "dataframe_record"),
            ({"instances": [{}], "params": {"temperature": 1}}, "params"),
        ],
    )
    def test_malformed_table_is_rejected_by_name(self, client: httpx.Client, body: Any, field: str | None) -> None:
        assert field in [found for found, _, _ in faults(client.post("/invocations", json=body))]

    @pytest.mark.parametrize("body", ["", "a,b\n1\n", "a,a\n1,1\n", "no such column\n1\n"])
    def test_malformed_csv_file_is_rejected(self, client: httpx.Client, body: str) -> None:
        assert faults(send_csv(client, body))

    def test_a_number_in_words_stays_words(self, client: httpx.Client, instances: Instances, number: Column) -> None:
        for wrong in ("1_0", "0x10", "ten"):
            sent = protocol_clients.to_csv([{**instances[0], number.name: wrong}])
            assert faults(send_csv(client, sent)) == [(number.name, 0, "must be a number")]

    @pytest.mark.parametrize("body", [b"\xff\xfe", b'a\n"1'])
    def test_invalid_csv_file_gets_400(self, client: httpx.Client, body: bytes) -> None:
        assert problem_of(send_csv(client, body)).type == "urn:problem:malformed-csv"

    def test_invalid_json_gets_400(self, client: httpx.Client) -> None:
        answer = client.post("/invocations", content=b"{", headers={"Content-Type": "application/json"})
        assert problem_of(answer).type == "urn:problem:malformed-json"

    def test_another_content_type_gets_415(self, client: httpx.Client) -> None:
        answer = client.post("/invocations", content=b"1", headers={"Content-Type": "application/x-parquet"})
        assert answer.status_code == httpx.codes.UNSUPPORTED_MEDIA_TYPE
        assert "text/csv" in problem_of(answer).detail


class TestInference:
    def test_tritons_client_finds_server_and_model(self, client: httpx.Client, model: str) -> None:
        with protocol_clients.triton_client(client) as speaker:
            assert speaker.is_server_live()
            assert speaker.is_server_ready()
            assert speaker.is_model_ready(model)
            assert speaker.is_model_ready(model, "1")
            assert speaker.get_server_metadata()["extensions"] == ["binary_tensor_data"]

    def test_the_metadata_list_the_contracts_columns(
        self, client: httpx.Client, model: str, contract: Contract
    ) -> None:
        with protocol_clients.triton_client(client) as speaker:
            found = ModelMetadata.model_validate(speaker.get_model_metadata(model, "1"))
        names = [column.name for column in contract.inputs] + ([contract.id.name] if contract.id else [])
        assert [one.name for one in found.inputs] == names
        assert [one.name for one in found.outputs] == ["prediction", "probabilities", "id", "model_version", "variant"]
        assert found.outputs[1].parameters == {"classes": ["false", "true"]}

    @pytest.mark.parametrize("place", ["nothing", "{}/versions/2"])
    def test_another_model_or_version_is_not_found(self, client: httpx.Client, model: str, place: str) -> None:
        path = f"/v2/models/{place.format(model)}"
        for answer in (client.get(path), client.get(f"{path}/ready"), client.post(f"{path}/infer", json={})):
            assert answer.status_code == httpx.codes.NOT_FOUND
            assert problem_of(answer).type == "urn:problem:unknown-model"

    def test_tritons_client_shows_the_reason_of_a_rejection(self, client: httpx.Client) -> None:
        with (
            protocol_clients.triton_client(client) as speaker,
            pytest.raises(InferenceServerException, match="there is no model 'nothing'"),
        ):
            speaker.get_model_metadata("nothing")

    def test_only_requested_outputs_are_returned(self, client: httpx.Client, model: str, example: Instance) -> None:
        asked = body_of(example, outputs=[{"name": "id"}], id="mine")
        told = protocol_clients.check_ok(client.post(f"/v2/models/{model}/infer", json=asked)).json()
        assert [one["name"] for one in told["outputs"]] == ["id"]
        assert (told["id"], told["model_name"], told["model_version"]) == ("mine", model, "1")

    def test_column_shape_and_float32_are_accepted(
        self, client: httpx.Client, model: str, contract: Contract, example: Instance
    ) -> None:
        body = body_of(example)
        for tensor in body["inputs"]:
            tensor["shape"], tensor["data"] = [1, 1], [tensor["data"]]
            if contract[tensor["name"]].is_numeric and contract[tensor["name"]].type != "boolean":
                tensor["datatype"] = "FP32"
        told = protocol_clients.check_ok(client.post(f"/v2/models/{model}/infer", json=body)).json()["outputs"]
        wanted = protocol_clients.send_native(client, [example])
        assert told[0]["data"] == wanted.predictions
        assert told[1]["data"] == (wanted.details or [])[0]

    @pytest.mark.parametrize(
        "change",
        [
            {"shape": [2]},
            {"shape": [1, 2]},
            {"shape": [-1]},
            {"shape": ["1"]},
            {"shape": []},
            {"datatype": "BYTES"},
            {"datatype": "FP128"},
            {"data": ["1"]},
            {"data": [True]},
            {"data": [1.0, 2.0]},
            {"data": None},
            {"data": [None]},
            {"data": [1e300]},
            {"parameters": {"binary_data_size": 8}},
            {"no such member": 1},
        ],
    )
    def test_a_tensor_that_does_not_fit_is_named(
        self, client: httpx.Client, model: str, example: Instance, number: Column, change: dict[str, Any]
    ) -> None:
        body = body_of(example)
        next(one for one in body["inputs"] if one["name"] == number.name).update(change)
        # The first one says how many rows there are.
        body["inputs"].sort(key=lambda one: one["name"] == number.name)
        answer = client.post(f"/v2/models/{model}/infer", json=body)
        assert [field for field, _, _ in faults(answer)] == [number.name]
        assert answer.json()["error"] == answer.json()["detail"]

    @pytest.mark.parametrize(
        ("change", "rows"),
        [
            ({"shape": [2, 1], "data": [[1], [1, 1]]}, 2),
            ({"shape": [2, 1], "data": [[1, 1], []]}, 2),
            ({"shape": [2, 1], "data": [[1], 1]}, 2),
            ({"shape": [2, 1], "data": [[[1]], [[1]]]}, 2),
            ({"shape": [2, 1], "data": [[1, 1]]}, 2),
            ({"shape": [2], "data": [[1], [1]]}, 2),
            ({"shape": [2], "data": [[1, 1]]}, 2),
            ({"shape": [2, 1], "data": [1, 1, 1]}, 2),
            ({"shape": [-2], "data": [1, 1]}, 2),
            ({"shape": [10**4000], "data": [1]}, 1),
            ({"shape": [2**62, 4], "data": [1]}, 1),
            ({"shape": [1.0], "data": [1]}, 1),
            ({"shape": [True], "data": [1]}, 1),
            ({"datatype": "UINT8", "data": [300]}, 1),
            ({"datatype": "UINT8", "data": [-1]}, 1),
            ({"datatype": "INT8", "data": [128]}, 1),
            ({"datatype": "INT64", "data": [2**63]}, 1),
            ({"datatype": "INT64", "data": [1.5]}, 1),
            ({"datatype": "FP16", "data": [70000.0]}, 1),
            ({"datatype": "FP32", "data": [1e39]}, 1),
            ({"datatype": "FP64", "data": [10**400]}, 1),
            ({"datatype": "BOOL", "data": [1]}, 1),
            ({"datatype": "BYTES", "data": [["1"]], "shape": [1, 1]}, 1),
            *(
                ({"parameters": {"content_type": kind}}, 1)
                for kind in ("nosuch", "str", "base64", "datetime", "pd", "", 7, ["np"], "NP")
            ),
        ],
        ids=str,
    )
    def test_data_that_contradicts_its_shape_is_rejected(
        self, client: httpx.Client, model: str, example: Instance, number: Column, change: dict[str, Any], rows: int
    ) -> None:
        inputs = [{**one, "shape": [rows], "data": one["data"] * rows} for one in body_of(example)["inputs"]]
        next(one for one in inputs if one["name"] == number.name).update(change)
        inputs.sort(key=lambda one: one["name"] == number.name)
        answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
        assert [field for field, _, _ in faults(answer)] == [number.name]

    def test_content_types_that_match_the_tensor_are_accepted(
        self, client: httpx.Client, model: str, contract: Contract, example: Instance
    ) -> None:
        wanted = protocol_clients.send_native(client, [example]).predictions
        path, plain = f"/v2/models/{model}/infer", body_of(example)["inputs"]
        for request_kind in (None, "pd", "np"):
            for encoded in (False, True):
                inputs = []
                for one in plain:
                    column = contract[one["name"]]
                    kind = "np" if column.is_numeric else "datetime" if column.type == "datetime" else "str"
                    data = one["data"]
                    if encoded and one["datatype"] == "BYTES":
                        data, kind = [base64.b64encode(text.encode()).decode() for text in data], "base64"
                    inputs.append({**one, "data": data, "parameters": {"content_type": kind}})
                outputs = [{"name": "prediction", "parameters": {"content_type": "np"}}]
                body = {"parameters": {"content_type": request_kind}, "inputs": inputs, "outputs": outputs}
                told = protocol_clients.check_ok(client.post(path, json=body)).json()
                assert told["outputs"][0]["data"] == wanted

    @pytest.mark.parametrize("text", ["not base64!", "/w==", "YQ"])
    def test_text_that_is_not_base64_is_rejected(
        self, client: httpx.Client, model: str, example: Instance, text: str
    ) -> None:
        inputs = body_of(example)["inputs"]
        column = next(one for one in inputs if one["datatype"] == "BYTES")
        column |= {"data": [text], "parameters": {"content_type": "base64"}}
        answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
        assert [(field, row) for field, row, _ in faults(answer)] == [(column["name"], 0)]

    @pytest.mark.parametrize(
        ("more", "field"),
        [
            ({"parameters": {"content_type": "nosuch"}}, "content_type"),
            ({"parameters": {"content_type": "str"}}, "content_type"),
            ({"outputs": [{"name": "id", "parameters": {"content_type": "base64"}}]}, "id"),
            ({"outputs": [{"name": "probabilities", "parameters": {"content_type": "str"}}]}, "probabilities"),
        ],
    )
    def test_unsuitable_content_type_is_rejected(
        self, client: httpx.Client, model: str, example: Instance, more: dict[str, Any], field: str
    ) -> None:
        answer = client.post(f"/v2/models/{model}/infer", json=body_of(example, **more))
        assert [found for found, _, _ in faults(answer)] == [field]

    def test_unknown_repeated_and_missing_tensors_are_named(
        self, client: httpx.Client, model: str, example: Instance, number: Column
    ) -> None:
        path, whole = f"/v2/models/{model}/infer", body_of(example)["inputs"]
        mine = next(one for one in whole if one["name"] == number.name)
        for inputs, rule in (
            ([*whole, {**mine, "name": f"{number.name}_"}], f"unknown field; did you mean '{number.name}'?"),
            ([*whole, mine], "is a duplicate column; send it once"),
            ([one for one in whole if one is not mine], REQUIRED),
        ):
            ((field, _, found),) = faults(client.post(path, json={"inputs": inputs}))
            assert (field or "").startswith(number.name)
            assert found == rule

    @pytest.mark.parametrize("outputs", [[{"name": "shap"}], [{"name": "id", "parameters": {"classification": 2}}]])
    def test_unknown_output_is_named(
        self, client: httpx.Client, model: str, example: Instance, outputs: list[Any]
    ) -> None:
        answer = client.post(f"/v2/models/{model}/infer", json=body_of(example, outputs=outputs))
        assert [field for field, _, _ in faults(answer)] == [outputs[0]["name"]]

    @pytest.mark.parametrize("length", ["x", "-1", "999999", "9" * 400])
    def test_wrong_header_length_gets_400(
        self, client: httpx.Client, model: str, example: Instance, length: str
    ) -> None:
        headers = {"Inference-Header-Content-Length": length}
        answer = client.post(f"/v2/models/{model}/infer", json=body_of(example), headers=headers)
        assert problem_of(answer).type == "urn:problem:malformed-header"

    @pytest.mark.parametrize(
        "buffer",
        [b"", b"\x01", struct.pack("<I", 9) + b"short", struct.pack("<I", 1) + b"\xff", struct.pack("<I", 0) * 2],
    )
    def test_broken_binary_texts_are_rejected_by_name(
        self, client: httpx.Client, model: str, example: Instance, text: Column, buffer: bytes
    ) -> None:
        body = body_of(example)
        tensor = next(one for one in body["inputs"] if one["name"] == text.name)
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": len(buffer)}
        assert [field for field, _, _ in faults(send_binary(client, model, body, buffer))] == [text.name]

    def test_extra_bytes_are_rejected(self, client: httpx.Client, model: str, example: Instance) -> None:
        assert [rule for *_, rule in faults(send_binary(client, model, body_of(example), b"12"))] == [
            "2 bytes follow the last tensor of the request; remove them"
        ]

    def test_requests_of_one_model_count_as_one_route(
        self, server: Server, client: httpx.Client, model: str, example: Instance
    ) -> None:
        client.post(f"/v2/models/{model}/infer", json=body_of(example))
        found = client.get("/metrics").text
        assert 'http_requests_total{method="POST",route="/v2/models/{name}/infer",status="200"}' in found
        assert f'route="/v2/models/{model}' not in found


def body_of(instance: Instance, **more: Any) -> dict[str, Any]:
    kinds = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}
    inputs = [
        {"name": name, "datatype": kinds[type(value)], "shape": [1], "data": [value]}
        for name, value in instance.items()
        if value is not None
    ]
    return {"inputs": inputs, **more}


def send_binary(client: httpx.Client, model: str, body: dict[str, Any], buffer: bytes) -> httpx.Response:
    head = json.dumps(body).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    return client.post(f"/v2/models/{model}/infer", content=head + buffer, headers=headers)
