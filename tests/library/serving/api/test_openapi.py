"""The OpenAPI document matches the API, and the docs page needs no network."""

import re
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel, SecretStr

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.app import create_app
from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.codecs.inference_documents import BINARY, MODEL, InferResponse
from flywheel_ml.serving.codecs.invocations import Invoked
from flywheel_ml.serving.schema.documents import Answers, Explanations, ModelInfo


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/predict", Answers),
        ("/explain", Explanations),
        ("/invocations", Invoked),
        (f"{MODEL}/infer", InferResponse),
    ],
)
def test_examples_of_the_docs_page_are_valid(client: httpx.Client, path: str, answer: type[BaseModel]) -> None:
    described = client.get("/openapi.json").json()["paths"][path]["post"]["requestBody"]["content"]
    (example,) = described["application/json"]["schema"]["examples"]
    response = client.post(path.format(**client.get("/model").json()), json=example)
    assert response.status_code == httpx.codes.OK
    answer.model_validate_json(response.content)


@pytest.mark.parametrize("path", ["/predict", "/explain", "/invocations", f"{MODEL}/infer", "/feedback"])
def test_described_media_types_are_accepted(client: httpx.Client, path: str) -> None:
    described = client.get("/openapi.json").json()["paths"][path]["post"]["requestBody"]["content"].keys()
    where = path.format(**client.get("/model").json())
    for kind in ("application/json", "text/csv", ARROW, BINARY, "text/plain"):
        answer = client.post(where, content=b"x", headers={"Content-Type": kind})
        assert (answer.status_code != httpx.codes.UNSUPPORTED_MEDIA_TYPE) == (kind in described)


def test_every_input_is_described_with_its_bounds(client: httpx.Client, contract: Contract) -> None:
    instance = client.get("/openapi.json").json()["components"]["schemas"]["Instance"]
    names = {column.name for column in contract.inputs} | ({contract.id.name} if contract.id else set())
    assert instance["properties"].keys() == names
    assert set(instance["required"]) == {column.name for column in contract.inputs if not column.nullable}
    assert instance["additionalProperties"] is False
    for column in contract.inputs:
        described = instance["properties"][column.name]
        assert column.unit in described.get("description", "")
        if column.range:
            bounds = described["anyOf"][0] if column.nullable else described
            assert (bounds["minimum"], bounds["maximum"]) == column.range


def test_explanation_response_is_described(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    taken = described["components"]["schemas"]["ExplainRequest"]["properties"]["instances"]
    assert (taken["minItems"], taken["maxItems"]) == (1, 1)
    route = described["paths"]["/explain"]["post"]
    assert "409" in route["responses"]
    assert not [name["name"] for name in route.get("parameters", [])]


@pytest.mark.parametrize("environment", ["development", "production"])
def test_key_of_metrics_is_described_in_production(
    tmp_path: Path, environment: Literal["development", "production"]
) -> None:
    app = create_app(
        Settings(
            _env_file=None, environment=environment, api_keys=SecretStr("k" * 32), serving_folder=tmp_path / "serving"
        )
    )
    told = app.state.service.build_description(app)["paths"]["/metrics"]["get"]
    asks = environment == "production"
    assert ("security" in told, "401" in told["responses"]) == (asks, asks)


def test_every_reference_in_the_description_resolves(client: httpx.Client) -> None:
    response = client.get("/openapi.json")
    known = response.json()["components"]["schemas"].keys()
    assert set(re.findall(r'"#/components/schemas/(\w+)"', response.text)) <= known


def test_every_described_route_exists(client: httpx.Client) -> None:
    model = client.get("/model").json()
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert client.request(method, path.format(**model, job="0" * 32)).status_code not in (404, 405)


def test_route_with_several_methods_lists_all(client: httpx.Client) -> None:
    answer = client.put("/ping")
    assert answer.status_code == httpx.codes.METHOD_NOT_ALLOWED
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_the_docs_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == httpx.codes.OK
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert files
    assert not [name for name in files if "//" in name]
    assert all(client.get(f"/{name}").status_code == httpx.codes.OK for name in files)


def test_every_error_is_described_with_its_headers(client: httpx.Client) -> None:
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for told in methods.values():
            refusals = {status: one.get("headers", {}) for status, one in told["responses"].items() if status[0] != "2"}
            assert "431" in refusals, path
            assert all("X-Request-Id" in headers for headers in refusals.values()), path
            assert all(("Retry-After" in refusals[status]) == (status in ("429", "503")) for status in refusals), path


@pytest.mark.parametrize("name", ["core.py", "..%2fcore.py", "x"])
def test_the_docs_page_serves_no_other_file(client: httpx.Client, name: str) -> None:
    assert client.get(f"/docs/{name}").status_code == httpx.codes.NOT_FOUND


def test_model_route_describes_the_model(client: httpx.Client) -> None:
    found = ModelInfo.model_validate_json(client.get("/model").content)
    assert (found.version, found.variant, found.degraded, found.rejected) == ("1", "champion", False, None)
    assert found.classes == [False, True]
    assert found.champion is not None
    assert found.champion.digest == found.digest


def test_metrics_count_requests_predictions_and_the_model(client: httpx.Client, example: dict[str, Any]) -> None:
    def count_predictions(text: str) -> float:
        return sum(
            float(number) for number in re.findall(r'^predictions_total\{.*version="1"\} (\S+)$', text, re.MULTILINE)
        )

    before = count_predictions(client.get("/metrics").text)
    client.post("/predict", json={"instances": [example] * 3})
    text = client.get("/metrics").text
    assert count_predictions(text) == before + 3
    assert re.search(r'^model_info\{.*variant="champion",version="1"\} 1\.0$', text, re.MULTILINE)
    assert 'http_request_duration_seconds_count{route="/predict"}' in text
