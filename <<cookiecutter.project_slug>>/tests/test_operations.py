"""Operations on a real registry and a real server: canary, rollback, and offline against online quality."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import polars as pl
import pytest
from flywheel_ml.core import bundle as bundles
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows import rollout
from flywheel_ml.ml_test_score.traffic import MIN_CORRELATION, measure_agreement
from flywheel_ml.model.evaluation.gate import GateResult
from flywheel_ml.model.registration.registry import Registry
from flywheel_ml.testing import rows
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.faulty_models import break_model
from flywheel_ml.testing.servers import Server, ServingFolder

from << cookiecutter.package_name >>.project import PROJECT

PATIENCE_SECONDS = 20.0
PASSED = [GateResult("minimum score", passed=True, reason="attacked elsewhere")]


class Operations(NamedTuple):
    """A registry, a server that follows it, and the rows that its callers send."""

    registry: Registry
    settings: Settings
    server: Server
    client: httpx.Client
    table: pl.DataFrame
    instances: list[dict[str, Any]]

    def register(self, path: Path) -> str:
        """Register a bundle that passed its gates; returns the version."""
        return self.registry.register(path, PASSED, {}, {}, []).number

    def predict(self) -> dict[str, Any]:
        """Send all rows."""
        answer = self.client.post("/predict", json={"instances": self.instances})
        assert answer.status_code == httpx.codes.OK, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait_for(self, version: str) -> float:
        """Wait until the server answers with a version, without a failed request; returns the seconds."""
        start = time.perf_counter()
        row = self.instances[:1]
        while time.perf_counter() - start < PATIENCE_SECONDS:
            answer = self.client.post("/predict", json={"instances": row})
            assert answer.status_code == httpx.codes.OK, answer.text
            if answer.json()["model_version"] == version:
                return time.perf_counter() - start
            time.sleep(0.02)
        pytest.fail(f"the server does not answer with version {version}")


@pytest.fixture(scope="module")
def operations(
    tmp_path_factory: pytest.TempPathFactory, bundle_path: Path, contract: Contract, params: Params
) -> Iterator[Operations]:
    """Version 1 is champion, and a server answers with it."""
    home = tmp_path_factory.mktemp("operations")
    settings = Settings(
        _env_file=None,
        tracking_uri=f"sqlite:///{home}/mlflow.db",
        artifact_root=str(home / "artifacts"),
        serving_folder=home / "serving",
        prediction_log=str(home / "log"),
    )
    registry = Registry.open(settings, contract.name, PROJECT)
    registry.promote(registry.register(bundle_path, PASSED, {}, {}, []).number, None)
    rollout.sync(registry, settings, "first champion")
    table = rows.make_table(contract, params.monitor.min_labels + 50, seed=2)
    with Server(PROJECT.package, home) as server, server.client() as client:
        yield Operations(registry, settings, server, client, table, rows.json_rows(table, contract))


@pytest.fixture(scope="module")
def weaker(
    tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame, contract: Contract, params: Params
) -> list[Path]:
    """Two weaker models: one that knows a single column of the signal, and one that learned from shuffled labels."""
    few, folder = table.gather_every(2), tmp_path_factory.mktemp("weaker")
    hidden = [column.name for column in rows.signal_columns(contract)[1:]]
    constant = few.with_columns(pl.col(name).drop_nulls().first().alias(name) for name in hidden)
    target = contract.target.name
    order = np.random.default_rng(0).permutation(few.height)
    shuffled = few.with_columns(few[target][order].alias(target))
    return [
        make_bundle(folder / name / "bundle", rows_, contract, params, PROJECT.features)
        for name, rows_ in (("blind", constant), ("shuffled", shuffled))
    ]


@pytest.mark.attack("offline and online metrics agree")
@pytest.mark.attack("rollback drill")
def test_better_offline_is_better_online_and_rollback_returns(
    operations: Operations,
    weaker: list[Path],
    contract: Contract,
    params: Params,
    record_property: Callable[[str, object], None],
) -> None:
    """Three versions serve the same labelled rows one after the other; then the worst is rolled back."""
    versions = ["1", *(operations.register(path) for path in weaker)]
    for version in versions:
        if version != "1":
            rollout.promote(operations.registry, operations.settings, version)
        operations.wait_for(version)
        answer = operations.predict()
        assert answer["model_version"] == version
        outcomes = zip(answer["predictions"], operations.table[contract.target.name].to_list(), strict=True)
        labels = [{"id": one["id"], "label": label} for one, label in outcomes]
        assert operations.client.post("/feedback", json={"labels": labels}).status_code == httpx.codes.OK
    found = measure_agreement(operations.settings, contract, params)
    assert found is not None
    assert list(found.offline) == versions
    record_property("correlation", round(found.correlation, 3))
    assert found.correlation >= MIN_CORRELATION, found

    start = time.perf_counter()
    assert rollout.rollback(operations.registry, operations.settings).number == versions[1]
    operations.wait_for(versions[1])
    record_property("rollback_seconds", round(time.perf_counter() - start, 2))


@pytest.mark.attack("operator missing in the runtime")
def test_canary_that_cannot_run_costs_no_answer(operations: Operations, bundle_path: Path, tmp_path: Path) -> None:
    """All traffic is assigned to a model with an operator that the runtime lacks; the champion answers."""
    folder = ServingFolder(tmp_path, bundle_path)
    broken = break_model((bundle_path / bundles.MODEL).read_bytes(), "missing operator")
    folder.add("broken", model=broken)
    version = operations.register(folder.bundle("broken"))
    champion = operations.predict()["model_version"]
    rollout.start(operations.registry, operations.settings, version, 1.0)
    deadline = time.perf_counter() + PATIENCE_SECONDS
    while not any(line.get("event") == "bundle_rejected" for line in operations.server.log_lines()):
        assert time.perf_counter() < deadline, operations.server.errors.read_text()
        assert operations.predict()["model_version"] == champion
    answer = operations.predict()
    assert (answer["model_version"], answer["degraded"]) == (champion, False)
    rollout.abort(operations.registry, operations.settings)
