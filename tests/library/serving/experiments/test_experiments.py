"""A challenger and a shadow alongside the champion of a running server: assignment, failures and logging."""

import json
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import tritonclient.http as triton
import yaml

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import MODEL, Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.serving_folder import BundleRef, Challenger, KeySplit, Shadow
from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log import SHADOW, Prediction, Reader, derive_shadow_id
from flywheel_ml.serving.app import create_app
from flywheel_ml.serving.codecs.arrow import ARROW
from flywheel_ml.serving.codecs.invocations import Invoked
from flywheel_ml.serving.experiments.circuit_breaker import MAX_FAILURES
from flywheel_ml.serving.experiments.runner import MAX_QUEUED_ROWS, NICE
from flywheel_ml.serving.prediction.batcher import MAX_INLINE_BODY_BYTES
from flywheel_ml.serving.schema.documents import Answers
from flywheel_ml.testing.servers import ServingFolder
from library.helpers import faulty_models, protocol_clients
from library.helpers.servers import InProcess, Server, find_workers, wait_for

Instance = dict[str, Any]


def challenger(ref: BundleRef, share: float = 1.0) -> Challenger:
    """A new experiment; its time names it."""
    return Challenger(ref=ref, share=share, salt=secrets.token_hex(16), since=f"{time.time_ns()}")


def shadow(ref: BundleRef) -> Shadow:
    """A new experiment."""
    return Shadow(ref=ref, salt=secrets.token_hex(16), since=f"{time.time_ns()}")


def keys(asked: Challenger, count: int, takes: bool) -> list[str]:
    """Keys that the challenger answers, or that it leaves to the champion."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if asked.is_assigned(str(number).encode()) is takes:
            found.append(str(number))
        number += 1
    return found


class Site:
    """A server whose champion says never (its threshold is 1) and whose sound challenger says always."""

    def __init__(
        self, server: Server, folder: ServingFolder, client: httpx.Client, champion: BundleRef, sound: BundleRef
    ) -> None:
        self.server = server
        self.folder = folder
        self.client = client
        self.champion = champion
        self.sound = sound

    def model(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/model").json()
        return found

    def begin(self, asked: Challenger | None = None, beside: Shadow | None = None) -> None:
        """Start an experiment, and wait until the server has it."""
        self.folder.point(self.champion, challenger=asked or (), shadow=beside)
        one = asked or beside
        wait_for(lambda: self.since() == (one.since if one else None))

    def since(self) -> str | None:
        told = self.model()
        now = told["challenger"] or told["shadow"]
        return now and str(now["since"])

    def ask(self, *instances: Instance, **headers: str) -> dict[str, Any]:
        response = self.client.post("/predict", json={"instances": instances}, headers=headers)
        assert response.status_code == httpx.codes.OK, response.text
        Answers.model_validate_json(response.content)
        found: dict[str, Any] = response.json()
        return found

    def request_with_key(self, key: str, *instances: Instance) -> dict[str, Any]:
        return self.ask(*instances, **{"X-Routing-Key": key})

    def logged(self, variant: str | None = None) -> dict[str, Prediction]:
        return {row.prediction.id: row.prediction for row in Reader(self.server.log).predictions(variant=variant)}

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def model_of(answer: dict[str, Any], place: int) -> tuple[str, str]:
    """Variant and version of one prediction."""
    row = answer["predictions"][place]
    return row.get("variant", answer["variant"]), row.get("model_version", answer["model_version"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("trial")
    folder = ServingFolder(home / "serving", bundle_path)
    champion, sound = folder.roll_out("never", threshold=1.0), folder.add("always", threshold=0.0)
    with (
        Server(home, ML_ALLOW_VARIANT_HEADER="true", ML_CHALLENGER_TIMEOUT_SECONDS="0.3") as server,
        server.client() as client,
    ):
        yield Site(server, folder, client, champion, sound)


@pytest.fixture(scope="module")
def faulty(site: Site, bundle_path: Path) -> dict[faulty_models.Fault, BundleRef]:
    """A bundle with each fault, at any row but the first of a call."""
    bundle = Bundle.open(bundle_path)
    return {
        fault: site.folder.add(fault, model=faulty_models.build_model(bundle, fault))
        for fault in faulty_models.ALL_FAULTS
    }


@pytest.fixture(scope="module")
def other(site: Site) -> BundleRef:
    """A second sound challenger."""
    return site.folder.add("other", threshold=0.0)


def test_assignment_by_key_is_stable_and_logged(site: Site, example: Instance) -> None:
    asked = challenger(site.sound, 0.4)
    site.begin(asked)
    for key in map(str, range(20)):
        expected = ("challenger", "always") if asked.is_assigned(key.encode()) else ("champion", "never")
        for _ in range(2):
            answer = site.request_with_key(key, example)
            assert (answer["variant"], answer["model_version"], answer["degraded"]) == (*expected, False)
            assert answer["predictions"][0]["prediction"] is (expected[0] == "challenger")
            row = site.logged()[answer["predictions"][0]["id"]]
            assert (row.variant, row.model_version) == expected
            assert json.loads(row.output)["prediction"] is answer["predictions"][0]["prediction"]
    told = site.model()["challenger"]
    assert (told["version"], told["share"], told["since"], told["state"]) == ("always", 0.4, asked.since, "running")


def test_row_without_a_key_is_assigned_by_its_id(site: Site, example: Instance) -> None:
    asked = challenger(site.sound, 0.5)
    site.begin(asked)
    answer = site.ask(*[example] * 60)
    assert {model_of(answer, place)[0] for place in range(60)} == {"champion", "challenger"}
    for place, row in enumerate(answer["predictions"]):
        assert (model_of(answer, place)[0] == "challenger") is asked.is_assigned(row["id"].encode())


def test_rows_of_several_models_name_their_model(site: Site, example: Instance) -> None:
    site.begin(challenger(site.sound, 0.5))
    answer = site.ask(*[example] * 40)
    assert (answer["variant"], answer["model_version"]) == ("champion", "never")
    logged = site.logged()
    for row in answer["predictions"]:
        assert row["prediction"] is (row["variant"] == "challenger")
        kept = logged[row["id"]]
        assert (kept.variant, kept.model_version) == (row["variant"], row["model_version"])
    assert "variant" not in site.ask(example)["predictions"][0]


def test_id_column_takes_precedence_over_the_header(site: Site, example: Instance, contract: Contract) -> None:
    if contract.id is None:
        pytest.skip("the contract has no id")
    asked = challenger(site.sound, 0.5)
    site.begin(asked)
    mine, theirs = keys(asked, 1, takes=True)[0], keys(asked, 1, takes=False)[0]
    value: Any = mine if contract.id.type == "string" else int(mine)
    assert site.request_with_key(theirs, {**example, contract.id.name: value})["variant"] == "challenger"


def test_large_request_is_split_between_models(site: Site, example: Instance) -> None:
    asked = challenger(site.sound, 0.3)
    site.begin(asked)
    count = 2 * MAX_INLINE_BODY_BYTES // len(json.dumps(example))
    answer = site.ask(*[example] * count)
    variants = Counter(model_of(answer, place)[0] for place in range(count))
    assert variants.keys() == {"champion", "challenger"}
    assert all(
        (model_of(answer, n)[0] == "challenger") is row["prediction"] for n, row in enumerate(answer["predictions"])
    )
    assert site.request_with_key(keys(asked, 1, takes=True)[0], *[example] * count)["variant"] == "challenger"


SPEAKERS = [
    protocol_clients.send_native,
    protocol_clients.send_arrow_both_ways,
    protocol_clients.send_arrow_for_json,
    protocol_clients.send_records,
    protocol_clients.send_csv_rows,
]


@pytest.mark.parametrize("speak", SPEAKERS, ids=lambda speak: speak.__name__)
def test_every_protocol_is_split_alike(
    site: Site, example: Instance, speak: Callable[[httpx.Client, list[Instance]], protocol_clients.ProtocolResult]
) -> None:
    asked = challenger(site.sound, 0.5)
    site.begin(asked)
    for takes in (True, False):
        with site.server.client(headers={"X-Routing-Key": keys(asked, 1, takes)[0]}) as client:
            assert speak(client, [example] * 3).predictions == [takes] * 3
    told = speak(site.client, [example] * 30)
    assert len(set(told.predictions)) == 2
    logged = site.logged()
    for one, prediction in zip(told.ids, told.predictions, strict=False):
        assert prediction is (logged[one].variant == "challenger")


def arms(*refs: BundleRef, share: float) -> list[Challenger]:
    """A new experiment with several challengers."""
    first = challenger(refs[0], share)
    return [first.model_copy(update={"ref": ref}) for ref in refs]


def begin_arms(site: Site, asked: list[Challenger]) -> None:
    site.folder.point(site.champion, challenger=asked)
    wait_for(lambda: site.since() == asked[0].since and len(site.model()["challengers"]) == len(asked))


def test_several_challengers_share_one_request(site: Site, example: Instance, other: BundleRef) -> None:
    asked = arms(site.sound, other, share=0.3)
    begin_arms(site, asked)
    split = KeySplit(asked)
    for count in (60, 2 * MAX_INLINE_BODY_BYTES // len(json.dumps(example))):
        answer = site.ask(*[example] * count)
        logged = site.logged()
        for place, row in enumerate(answer["predictions"]):
            arm = split.find(row["id"].encode())
            expected = ("champion", "never") if arm is None else ("challenger", asked[arm].ref.version)
            assert model_of(answer, place) == expected
            assert (logged[row["id"]].variant, logged[row["id"]].model_version) == expected
            assert logged[row["id"]].assigned_variant is None
        assert len({model_of(answer, place) for place in range(count)}) == 3


def test_request_of_two_challengers_names_the_model_of_each_row(
    site: Site, example: Instance, other: BundleRef
) -> None:
    begin_arms(site, arms(site.sound, other, share=0.5))
    answer = site.ask(*[example] * 40)
    assert {model_of(answer, place)[1] for place in range(40)} == {"always", "other"}
    assert all(row["variant"] == "challenger" for row in answer["predictions"])


def test_tester_chooses_one_of_several_challengers(site: Site, example: Instance, other: BundleRef) -> None:
    begin_arms(site, arms(site.sound, other, share=0.01))
    for header, version in (("challenger", "always"), ("Other", "other"), ("champion", "never"), ("never", "never")):
        assert site.ask(example, **{"X-Variant": header})["model_version"] == version


def test_failing_challenger_pauses_alone(
    site: Site, example: Instance, faulty: dict[faulty_models.Fault, BundleRef]
) -> None:
    begin_arms(site, arms(faulty["raised"], site.sound, share=0.5))
    for _ in range(MAX_FAILURES):
        assert site.ask(*[example] * 4, **{"X-Variant": "raised"})["model_version"] == "never"
    states = {one["version"]: one["state"] for one in site.model()["challengers"]}
    assert states == {"raised": "paused", "always": "running"}
    answer = site.ask(*[example] * 40)
    assert {model_of(answer, place)[1] for place in range(40)} == {"never", "always"}
    assigned = {site.logged()[row["id"]].assigned_variant for row in answer["predictions"]}
    assert assigned == {None, "challenger:raised"}


def test_rejected_challenger_leaves_its_rows_to_the_champion(site: Site, example: Instance) -> None:
    missing = BundleRef(version="missing", digest="0" * 64)
    begin_arms(site, arms(missing, site.sound, share=0.5))
    told = {one["version"]: one for one in site.model()["challengers"]}
    assert (told["missing"]["state"], told["always"]["state"]) == ("rejected", "running")
    assert told["missing"]["reason"] != told["always"]["reason"]
    answer = site.ask(*[example] * 40)
    assert {model_of(answer, place)[1] for place in range(40)} == {"never", "always"}


@pytest.mark.skipif(sys.platform != "linux", reason="only there have threads a priority of their own")
def test_challenger_thread_has_lower_priority(site: Site, example: Instance) -> None:
    site.begin(challenger(site.sound))
    assert site.ask(example)["variant"] == "challenger"
    process = site.server.process.pid
    threads = [int(path.name) for path in Path(f"/proc/{process}/task").iterdir()]
    own = os.getpriority(os.PRIO_PROCESS, process)
    found = Counter(os.getpriority(os.PRIO_PROCESS, thread) - own for thread in threads)
    assert found == {0: len(threads) - 1, min(NICE, 19 - own): 1}


def test_each_protocol_names_the_model_of_each_row(site: Site, example: Instance) -> None:
    site.begin(challenger(site.sound, 0.5))
    rows = [example] * 30
    name = site.model()["name"]
    with protocol_clients.triton_client(site.client) as speaker:
        sent = [
            protocol_clients.build_tensor(one, [example.get(one["name"])] * 30, True)
            for one in speaker.get_model_metadata(name)["inputs"]
        ]
        only = [triton.InferRequestedOutput(wanted) for wanted in ("id", "prediction")]
        for outputs in (None, only):
            answer = speaker.infer(name, [one for one in sent if one], outputs=outputs)
            told = [answer.as_numpy(one).tolist() for one in ("id", "prediction", "model_version", "variant")]
            check_models_named(site, list(zip(*told, strict=True)))
    invoked = site.client.post("/invocations", json={"instances": rows}).json()
    Invoked.model_validate(invoked)
    check_models_named(
        site, list(zip(*(invoked[one] for one in ("ids", "predictions", "model_versions", "variants")), strict=True))
    )
    table = pa.ipc.open_stream(
        protocol_clients.send_arrow(site.client, protocol_clients.to_arrow_stream(rows), Accept=ARROW).content
    ).read_all()
    check_models_named(
        site,
        list(zip(*(table[one].to_pylist() for one in ("id", "prediction", "model_version", "variant")), strict=True)),
    )
    assert table.schema.metadata[b"model_version"] == b"never"


def check_models_named(site: Site, told: list[tuple[Any, ...]]) -> None:
    """Whether rows of id, prediction, version and variant are as the log has them, and of two models."""
    logged = site.logged()
    texts = [tuple(value.decode() if isinstance(value, bytes) else value for value in row) for row in told]
    assert {row[1:] for row in texts} == {(False, "never", "champion"), (True, "always", "challenger")}
    for one, _, version, variant in texts:
        assert (logged[one].model_version, logged[one].variant) == (version, variant)


def test_model_of_a_request_is_named_once_by_default(site: Site, example: Instance) -> None:
    site.begin()
    invoked = site.client.post("/invocations", json={"instances": [example]}).json()
    assert (invoked["model_version"], invoked["variant"]) == ("never", "champion")
    assert not invoked.keys() & {"model_versions", "variants"}
    name = site.model()["name"]
    with protocol_clients.triton_client(site.client) as speaker:
        sent = [
            protocol_clients.build_tensor(one, [example.get(one["name"])], False)
            for one in speaker.get_model_metadata(name)["inputs"]
        ]
        answer = speaker.infer(name, [one for one in sent if one])
        assert answer.get_response()["model_version"] == "never"
        assert answer.as_numpy("model_version") is None
        asked = [triton.InferRequestedOutput("model_version", binary_data=False)]
        answer = speaker.infer(name, [one for one in sent if one], outputs=asked)
        assert answer.as_numpy("model_version").tolist() == ["never"]


def test_testers_may_choose_the_variant_if_allowed(site: Site, example: Instance) -> None:
    asked = challenger(site.sound, 0.5)
    site.begin(asked)
    for key in (keys(asked, 1, takes=True)[0], keys(asked, 1, takes=False)[0]):
        for wanted in ("champion", "challenger"):
            assert site.ask(example, **{"X-Routing-Key": key, "X-Variant": wanted})["variant"] == wanted
    assert (
        site.ask(example, **{"X-Routing-Key": keys(asked, 1, takes=False)[0], "X-Variant": "x"})["variant"]
        == "champion"
    )


def test_choice_of_variant_is_ignored_by_default(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    asked = challenger(folder.add("2"), 0.5)
    folder.point(folder.add("1"), challenger=asked)
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    with InProcess(app) as caller:
        for key in keys(asked, 2, takes=False):
            headers = {"X-Routing-Key": key, "X-Variant": "challenger"}
            answer = caller.request("POST", "/predict", json={"instances": [example]}, headers=headers).json()
            assert answer["variant"] == "champion"


@pytest.mark.parametrize("fault", faulty_models.ALL_FAULTS)
def test_broken_challenger_is_paused_until_restarted(
    site: Site, faulty: dict[faulty_models.Fault, BundleRef], example: Instance, fault: faulty_models.Fault
) -> None:
    many = [example] * (faulty_models.SAFE_ROWS + 1)
    replaced, paused = site.metric("challenger_rows_replaced_total"), site.metric("experiments_paused_total")
    asked = challenger(faulty[fault])
    site.begin(asked)
    assert site.ask(example)["variant"] == "challenger"
    began = time.monotonic()
    while site.model()["challenger"]["state"] == "running":
        answer = site.ask(*many)
        assert model_of(answer, -1) == ("champion", "never")
        assert answer["degraded"] is False
        if fault == "not_finite":
            assert model_of(answer, 0) == ("challenger", "not_finite")
        assert time.monotonic() - began < 10
        time.sleep(0.01)

    told = site.model()["challenger"]
    assert told["state"] == "paused"
    assert told["paused_at"]
    assert fault in told["reason"]
    assert site.metric("challenger_rows_replaced_total") > replaced
    assert site.metric("experiments_paused_total") == paused + 1
    assert site.metric("experiment_running") == 0
    lines = [line for line in site.server.log_lines() if line["event"] == "experiment_paused"]
    assert (lines[-1]["level"], lines[-1]["version"]) == ("error", asked.ref.version)
    last = site.ask(example)
    assert last["variant"] == "champion"

    # A row counts as the challenger's although the champion answered, also while the challenger is paused.
    def was_failed(identifier: str) -> bool:
        row = site.logged()[identifier]
        return (row.variant, row.assigned_variant, row.model_version) == ("champion", "challenger", "never")

    assert was_failed(answer["predictions"][-1]["id"])
    assert was_failed(last["predictions"][0]["id"])
    assert site.metric('challenger_rows_replaced_total{reason="paused"}') > 0

    # Another share is the same experiment; another salt is a new one.
    site.folder.point(site.champion, challenger=asked.model_copy(update={"share": 0.9}))
    wait_for(lambda: site.model()["challenger"]["share"] == 0.9)
    assert site.model()["challenger"]["state"] == "paused"
    site.begin(challenger(asked.ref))
    assert site.model()["challenger"]["state"] == "running"
    assert site.ask(example)["variant"] == "challenger"


@pytest.mark.chaos
def test_slow_challenger_delays_only_its_own_rows(
    site: Site, faulty: dict[faulty_models.Fault, BundleRef], example: Instance
) -> None:
    asked = challenger(faulty["slow"], 0.5)
    site.begin(asked)
    (mine,), theirs = keys(asked, 1, takes=True), keys(asked, 1, takes=False)[0]
    body = json.dumps({"instances": [example] * (faulty_models.SAFE_ROWS + 1)})
    request = (
        f"POST /predict HTTP/1.1\r\nhost: x\r\nx-routing-key: {mine}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    )
    site.server.raw(request.encode(), read=False)
    seconds = []
    for _ in range(50):
        began = time.perf_counter()
        assert site.request_with_key(theirs, example)["variant"] == "champion"
        seconds.append(time.perf_counter() - began)
    assert max(seconds) < 0.5  # The challenger takes a second; a machine may be busy.
    assert sorted(seconds)[25] < 0.2
    began = time.perf_counter()
    assert site.request_with_key(mine, example)["variant"] == "champion"
    assert time.perf_counter() - began < 0.7  # The challenger takes a second.


def test_incompatible_challenger_is_rejected(site: Site, example: Instance, contract: Contract) -> None:
    column = next(column for column in contract.inputs if column.role == "feature")

    def renamed(text: str) -> str:
        content = yaml.safe_load(text)
        next(found for found in content["columns"] if found["name"] == column.name)["name"] = "other"
        return yaml.safe_dump(content)

    facts = Bundle.open(site.folder.bundle("never")).manifest
    layout: dict[str, Any] = {
        part: tuple("other" if name == column.name else name for name in getattr(facts, part))
        for part in ("numeric", "categorical")
    }
    site.begin(challenger(site.folder.add("stranger", renamed, **layout)))
    told = site.model()
    assert told["challenger"]["state"] == "rejected"
    assert told["challenger"]["reason"] == told["rejected"]["reason"]
    assert "needs the column 'other'" in told["rejected"]["reason"]
    assert told["variant"] == "champion"
    assert site.ask(example)["variant"] == "champion"


def test_damaged_challenger_is_rejected_or_dropped(site: Site, example: Instance) -> None:
    ref = site.folder.add("hurt")
    model = site.folder.bundle("hurt") / MODEL
    content = model.read_bytes()
    model.write_bytes(content[:-1])
    asked = challenger(ref)
    site.begin(asked)
    assert site.model()["challenger"]["state"] == "rejected"
    assert f"{MODEL} was changed" in site.model()["rejected"]["reason"]
    assert site.ask(example)["variant"] == "champion"
    model.write_bytes(content)
    wait_for(lambda: site.model()["challenger"]["state"] == "running")
    assert site.ask(example)["variant"] == "challenger"
    model.write_bytes(content[:-1])
    wait_for(lambda: site.model()["challenger"]["state"] == "rejected")
    assert site.ask(example)["variant"] == "champion"


def test_shadow_is_logged_but_never_answers(site: Site, example: Instance) -> None:
    site.begin(beside=shadow(site.sound))
    answers = [site.ask(example, example), site.ask(*[example] * 400)]
    ids = [row["id"] for answer in answers for row in answer["predictions"]]
    assert {(answer["variant"], answer["model_version"]) for answer in answers} == {("champion", "never")}
    wait_for(lambda: {derive_shadow_id(one) for one in ids} <= site.logged(SHADOW).keys())
    answered, logged = site.logged(), site.logged(SHADOW)
    assert answered.keys().isdisjoint(logged)
    for one in ids:
        mine, other = answered[one], logged[derive_shadow_id(one)]
        assert (other.inputs, other.entity_id, other.timestamp_us) == (mine.inputs, mine.entity_id, mine.timestamp_us)
        assert (other.variant, other.model_version, other.score) == (SHADOW, "always", mine.score)
        assert json.loads(other.output)["prediction"] is True
    tally = {(one.variant, one.model_version): one.rows for one in Reader(site.server.log).compute_stats()}
    assert tally["shadow", "always"] >= len(ids)


@pytest.mark.parametrize("fault", faulty_models.ALL_FAULTS)
def test_broken_shadow_does_not_affect_responses(
    site: Site, faulty: dict[faulty_models.Fault, BundleRef], example: Instance, fault: faulty_models.Fault
) -> None:
    failed = site.metric("shadow_rows_failed_total")
    site.begin(beside=shadow(faulty[fault]))

    def is_paused() -> bool:
        began = time.perf_counter()
        assert site.ask(*[example] * (faulty_models.SAFE_ROWS + 1))["variant"] == "champion"
        assert time.perf_counter() - began < 0.7  # The shadow takes a second.
        return bool(site.model()["shadow"]["state"] == "paused")

    # A shadow that is behind is asked for several answers at once, so it is not known how many it takes.
    if fault == "slow":
        assert not any(is_paused() for _ in range(2 * MAX_FAILURES))
    else:
        wait_for(is_paused)
        assert site.metric("shadow_rows_failed_total") > failed
        last = site.ask(example)["predictions"][0]["id"]
        wait_for(lambda: derive_shadow_id(last) in site.logged(SHADOW))
        assert site.logged(SHADOW)[derive_shadow_id(last)].degraded


def test_rows_beyond_the_shadow_queue_are_dropped_and_counted(
    site: Site, faulty: dict[faulty_models.Fault, BundleRef], example: Instance
) -> None:
    dropped = site.metric("shadow_rows_dropped_total")
    site.begin(beside=shadow(faulty["slow"]))
    for _ in range(4):
        assert len(site.ask(*[example] * (MAX_QUEUED_ROWS // 2))["predictions"]) == MAX_QUEUED_ROWS // 2
    assert site.metric("shadow_rows_dropped_total") >= dropped + MAX_QUEUED_ROWS // 2
    site.begin()


@pytest.mark.chaos
def test_killed_server_has_logged_every_response(site: Site, example: Instance) -> None:
    site.begin(challenger(site.sound, 0.5))
    given = {}
    for key in map(str, range(60)):
        answer = site.request_with_key(key, example)
        given[answer["predictions"][0]["id"]] = (answer["variant"], answer["model_version"])
    with Server(site.server.home, ML_CHALLENGER_TIMEOUT_SECONDS="5") as other, other.client() as client:
        for key in map(str, range(20)):
            body = {"instances": [example]}
            answer = client.post("/predict", json=body, headers={"X-Routing-Key": key}).json()
            given[answer["predictions"][0]["id"]] = (answer["variant"], answer["model_version"])
        other.process.send_signal(signal.SIGKILL)
        other.process.wait()
    logged = site.logged()
    assert {one: (logged[one].variant, logged[one].model_version) for one in given} == given
    assert len(set(given.values())) == 2


@pytest.mark.chaos
def test_assignment_is_the_same_in_every_worker(folder: ServingFolder, tmp_path: Path, example: Instance) -> None:
    asked = challenger(folder.add("2"), 0.5)
    folder.point(folder.add("1"), challenger=asked)
    for _ in range(2):
        with Server(tmp_path, "--workers", "2", ML_CHALLENGER_TIMEOUT_SECONDS="5") as server:
            assert len(find_workers(server)) == 2
            for key in map(str, range(12)):
                with server.client() as client:  # A connection of its own, which either worker may take.
                    headers = {"X-Routing-Key": key}
                    answer = client.post("/predict", json={"instances": [example]}, headers=headers).json()
                assert (answer["variant"] == "challenger") is asked.is_assigned(key.encode())


def test_routing_with_a_duplicate_model_is_rejected(site: Site, example: Instance) -> None:
    asked = challenger(site.sound)
    site.begin(asked)
    path = site.folder.path / serving_folder.ROUTING
    content = json.loads(path.read_text())
    content["challenger"]["ref"] = content["champion"]
    path.write_text(json.dumps(content))
    wait_for(lambda: site.model()["rejected"] is not None)
    assert "alongside itself" in site.model()["rejected"]["reason"]
    assert site.ask(example)["variant"] == "challenger"


def test_rollback_during_an_experiment_is_fast(site: Site, example: Instance) -> None:
    site.begin(challenger(site.sound))
    began = time.monotonic()
    site.folder.point(site.sound, previous=site.champion)
    wait_for(lambda: site.ask(example)["variant"] == "champion")
    assert time.monotonic() - began < 2
    assert site.ask(example)["model_version"] == "always"
    began = time.monotonic()
    site.folder.point(site.champion, previous=site.sound)
    wait_for(lambda: site.ask(example)["model_version"] == "never")
    assert time.monotonic() - began < 2
