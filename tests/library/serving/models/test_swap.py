"""Model changes in a running server: swaps, rejections and repairs."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper

from flywheel_ml.core.bundle import CARD, MODEL, Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.servers import Server, generate_load, wait_for

Instance = dict[str, Any]


class Site:
    """A server, its folder and a client; every test rolls out versions of its own."""

    def __init__(self, server: Server, folder: ServingFolder, client: httpx.Client) -> None:
        self.server = server
        self.folder = folder
        self.client = client

    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/model").json()
        return found

    def waits_for(self, version: str) -> None:
        wait_for(lambda: self.model()["version"] == version and self.model()["rejected"] is None)

    def predict(self, instance: Instance) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.post("/predict", json={"instances": [instance]}).json()
        return answer

    def refusals(self) -> list[dict[str, Any]]:
        return [line for line in self.server.log_lines() if line["event"] == "bundle_rejected"]

    def refused_total(self) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("bundles_rejected_total"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("swap")
    folder = ServingFolder(home / "serving", bundle_path)
    folder.roll_out("first")
    with Server(home) as server, server.client() as client:
        yield Site(server, folder, client)


def damage(path: Path) -> bytes:
    """Flip one bit in the middle of a file; returns what it was."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    return content


def nowhere(bundle: Bundle) -> bytes:
    """An ONNX model with the bundle's inputs that finds every probability to be NaN."""
    wide = len(bundle.manifest.numeric)
    tensor, number, text = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.STRING
    inputs = [tensor("num", number, [None, wide])]
    if bundle.manifest.categorical:
        inputs.append(tensor("cat", text, [None, len(bundle.manifest.categorical)]))
    weights = helper.make_tensor("weights", number, [wide, 2], [float("nan")] * wide * 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["num", "weights"], ["probabilities"])],
        "model",
        inputs,
        [tensor("probabilities", number, [None, 2])],
        [weights],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = made.SerializeToString()
    return content


@pytest.mark.chaos
def heavy(bundle: Bundle, megabytes: int) -> bytes:
    """An ONNX model of that size with the bundle's inputs; it gives every class the same probability."""
    tensor, number, text = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.STRING
    widths = {"num": (number, len(bundle.manifest.numeric)), "cat": (text, len(bundle.manifest.categorical))}
    inputs = [tensor(name, kind, [None, wide]) for name, (kind, wide) in widths.items() if wide]
    halves = np.full((megabytes * 125_000, 2), 0.5, dtype=np.float32)
    integers = {"zero": 0, "one": 1}
    nodes = [
        helper.make_node("Shape", [inputs[0].name], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        helper.make_node("Range", ["zero", "rows", "one"], ["places"]),
        helper.make_node("Gather", ["halves", "places"], ["probabilities"]),
    ]
    constants = [helper.make_tensor(name, TensorProto.INT64, [], [value]) for name, value in integers.items()]
    constants.append(helper.make_tensor("halves", number, halves.shape, halves.tobytes(), raw=True))
    outputs = [tensor("probabilities", number, [None, 2])]
    graph = helper.make_graph(nodes, "model", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = made.SerializeToString()
    return content


def test_a_swap_under_load_fails_no_request(site: Site, example: Instance) -> None:
    # Version `always` says true whatever the probability, so an answer shows which model gave it.
    old, new = site.folder.roll_out("never", threshold=1.0), site.folder.add("always", threshold=0.0)
    site.waits_for("never")
    with generate_load(site.server, example) as crowd:
        for ref in (new, old, new):
            site.folder.point(ref)
            site.waits_for(ref.version)
            crowd.wait_for_answers(20)
    assert crowd.failures == []
    given = {(answer["model_version"], answer["predictions"][0]["prediction"]) for answer in crowd.answers}
    assert given == {("never", False), ("always", True)}


def test_tampered_new_bundle_is_rejected(site: Site, example: Instance) -> None:
    site.folder.roll_out("good")
    site.waits_for("good")
    before = site.refused_total()
    ref = site.folder.add("bad")
    content = damage(site.folder.bundle("bad") / MODEL)
    site.folder.point(ref)
    wait_for(lambda: site.model()["rejected"] is not None)

    model = site.model()
    assert model["rejected"]["version"] == "bad"
    assert f"{MODEL} was changed" in model["rejected"]["reason"]
    assert str(site.folder.path) not in json.dumps(model)
    answer = site.predict(example)
    assert (answer["model_version"], answer["variant"], answer["degraded"]) == ("good", "fallback", True)
    assert site.refused_total() == before + 1
    assert [line["level"] for line in site.refusals() if line["version"] == "bad"] == ["error"]

    (site.folder.bundle("bad") / MODEL).write_bytes(content)
    site.waits_for("bad")
    assert site.predict(example)["degraded"] is False


def test_tampering_with_the_live_bundle_is_reported(site: Site, example: Instance) -> None:
    site.folder.roll_out("live")
    site.waits_for("live")
    content = damage(site.folder.bundle("live") / CARD)
    wait_for(lambda: site.model()["rejected"] is not None)
    assert f"{CARD} was changed" in site.model()["rejected"]["reason"]
    answer = site.predict(example)
    assert (answer["model_version"], answer["variant"], answer["degraded"]) == ("live", "champion", False)
    (site.folder.bundle("live") / CARD).write_bytes(content)
    site.waits_for("live")


def test_unregistered_bundle_is_rejected(site: Site) -> None:
    site.folder.roll_out("registered")
    site.waits_for("registered")
    ref = site.folder.add("resealed")
    site.folder.point(ref.model_copy(update={"digest": "0" * 64}))
    wait_for(lambda: site.model()["rejected"] is not None)
    assert "manifest.json was changed after it was registered" in site.model()["rejected"]["reason"]
    assert site.model()["version"] == "registered"


def test_model_that_fails_on_a_typical_row_is_rejected(site: Site, bundle_path: Path) -> None:
    site.folder.roll_out("answering")
    site.waits_for("answering")
    site.folder.point(site.folder.add("speechless", model=nowhere(Bundle.open(bundle_path))))
    wait_for(lambda: site.model()["rejected"] is not None)
    assert "NaN or infinity" in site.model()["rejected"]["reason"]
    assert site.model()["version"] == "answering"


@pytest.mark.parametrize("content", ["{", '{"format": 1}', "[]", None])
def test_broken_or_missing_routing_is_reported(site: Site, content: str | None) -> None:
    ref = site.folder.add(f"kept-{content is None}-{len(content or '')}")
    site.folder.point(ref)
    site.waits_for(ref.version)
    path = site.folder.path / "routing.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    wait_for(lambda: site.model()["rejected"] is not None)
    assert "routing.json" in site.model()["rejected"]["reason"]
    assert site.model()["version"] == ref.version


def test_the_request_model_changes_with_the_contract(site: Site, example: Instance, contract: Contract) -> None:
    column = next(column for column in contract.inputs if column.role == "feature")

    def toggle_nullable(text: str) -> str:
        content = yaml.safe_load(text)
        next(found for found in content["columns"] if found["name"] == column.name)["nullable"] = not column.nullable
        return yaml.safe_dump(content)

    def required() -> bool:
        instance = {name: value for name, value in example.items() if name != column.name}
        response = site.client.post("/predict", json={"instances": [instance]})
        assert response.status_code in {200, 422}
        schema = site.client.get("/openapi.json").json()["components"]["schemas"]["Instance"]
        assert (column.name in schema.get("required", [])) == (response.status_code == 422)
        return response.status_code == 422

    site.folder.roll_out("as-it-was")
    site.waits_for("as-it-was")
    assert required() is not column.nullable
    site.folder.point(site.folder.add("turned", toggle_nullable))
    site.waits_for("turned")
    assert required() is column.nullable


@pytest.mark.chaos
@pytest.mark.full
def test_memory_does_not_grow_with_swaps(
    folder: ServingFolder, tmp_path: Path, bundle_path: Path, instances: list[Instance]
) -> None:
    model = heavy(Bundle.open(bundle_path), 5)
    folder.point(folder.add("0", model=model))
    bodies = [
        ("/predict", {"instances": instances[:1]}),
        ("/predict", {"instances": instances * 20}),
        ("/invocations", {"dataframe_records": instances[:1]}),
        ("/explain", {"instances": "none"}),
        ("/v2/models/none/infer", {}),
    ]
    with Server(tmp_path) as server, ExitStack() as clients:
        client = clients.enter_context(server.client())

        def megabytes() -> float:
            pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
            return int(pages) * os.sysconf("SC_PAGESIZE") / 2**20

        for number in range(1, 31):
            folder.roll_out(str(number), model=model)
            wait_for(lambda wanted=str(number): client.get("/model").json()["version"] == wanted)  # type: ignore[misc]
            # Connections that stay open, on whatever they asked last; and requests that failed.
            for path, body in bodies:
                clients.enter_context(server.client()).post(path, json=body)
            if number == 10:
                time.sleep(1)
                before = megabytes()
        # It varies by about 10 MB from swap to swap; 20 retained models would be 100 MB.
        wait_for(lambda: megabytes() <= before + 20)
