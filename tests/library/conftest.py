"""Fixtures for all tests: the example's contract and parameters, a small table, a small real bundle."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from library.helpers import example

# Models here are tiny: threads that wait for one another cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
example.install()

from flywheel_ml.cli.verbs import ENVIRONMENT  # noqa: E402 (importable from here on)
from flywheel_ml.core import paths  # noqa: E402
from flywheel_ml.core.contract import Column, Columns, Contract  # noqa: E402
from flywheel_ml.core.params import Params  # noqa: E402
from flywheel_ml.data import tables  # noqa: E402
from flywheel_ml.model.evaluation.gate import GateResult  # noqa: E402
from library.helpers import postgresql, project, rows, store  # noqa: E402
from library.helpers.bundles import build_once  # noqa: E402
from library.helpers.project import ROOT  # noqa: E402

if TYPE_CHECKING:
    # Heavy, and imported where they are used: the process that hands out the tests needs none of it.
    from flywheel_ml.model.registration.registry import Registry, Version


STORES = (
    ("tracking", "_tracking_service", "TrackingStoreRegistry"),
    ("model_registry", "_model_registry", "ModelRegistryStoreRegistry"),
)
"""Packages of MLflow's two stores, and of the classes that keep them."""


def pytest_configure() -> None:
    """Set the environment variables that the command line sets."""
    os.environ.update(ENVIRONMENT)


@pytest.fixture(autouse=True)
def close_stores() -> Iterator[None]:
    """Let the next test open its own MLflow store.

    MLflow keeps stores by address, that of a local store is relative, and SQLAlchemy makes it absolute only once. So a
    test in another folder would get the store of the first one.
    """
    yield
    for store_module, cache_module, cache in STORES:
        if module := sys.modules.get(f"mlflow.store.{store_module}.sqlalchemy_store"):
            for engine in module.SqlAlchemyStore._engine_map.values():
                engine.dispose()
            module.SqlAlchemyStore._engine_map.clear()
        if module := sys.modules.get(f"mlflow.tracking.{cache_module}.registry"):
            getattr(module, cache)._get_store_with_resolved_uri.cache_clear()


@pytest.fixture(scope="session")
def contract() -> Contract:
    """The project's contract, its target made a boolean where it is none; tests/test_tasks.py tries the others."""
    own = Contract.load(ROOT / paths.CONTRACT)
    target = Column(name=own.target.name, type="boolean", role="target", description=own.target.description)
    columns = tuple(target if column.role == "target" else column for column in own.columns)
    return own if own.target.type == "boolean" else own.model_copy(update={"columns": columns})


@pytest.fixture(scope="session")
def params() -> Params:
    """The project's parameters, with a smaller model; made-up rows have no groups to keep together."""
    params = Params.load(ROOT / paths.PARAMS)
    small = params.train.hist_gradient_boosting.model_copy(update={"max_iter": 15})
    return params.model_copy(
        update={
            "train": params.train.model_copy(update={"hist_gradient_boosting": small, "baseline_rows": 500}),
            "evaluate": params.evaluate.model_copy(update={"min_slice_rows": 20, "groups": ()}),
            "split": params.split.model_copy(update={"group": None}),
        }
    )


@pytest.fixture(scope="session")
def table(contract: Contract) -> pl.DataFrame:
    """3,000 rows that satisfy the contract, target included, in order of time."""
    return rows.make_table(contract, 3000)


@pytest.fixture(scope="session")
def columns(table: pl.DataFrame, contract: Contract) -> Columns:
    """The table's input columns."""
    return tables.to_columns(table, contract.inputs)


@pytest.fixture(scope="session")
def bundle_path(
    tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame, contract: Contract, params: Params
) -> Path:
    """A sealed bundle, made of the table by the project's own stages. Tests that change it take a copy."""
    from flywheel_ml.testing.bundles import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", table, contract, params)


@pytest.fixture
def bundle_copy(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(bundle_path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MLflow's store as its first use leaves it."""
    return build_once(tmp_path_factory, "store", store.open_store)


@pytest.fixture
def folder(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of the fresh store."""
    path = shutil.copytree(fresh_store, tmp_path / "project")
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def registry(folder: Path) -> "Registry":
    """An empty registry in the current folder."""
    from flywheel_ml.model.registration.registry import Registry

    return Registry.open(store.settings(folder), store.NAME)


@pytest.fixture
def register(registry: "Registry", bundle_path: Path) -> "Callable[[Sequence[GateResult]], Version]":
    """A function that registers the small bundle with results of gates."""

    def call(checks: Sequence[GateResult]) -> "Version":
        return registry.register(bundle_path, checks, {"seed": 1}, {"git_commit": "abc"}, [])

    return call


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> project.PipelineRuns:
    """A small project after three pipeline runs; the first one was killed."""
    return build_once(tmp_path_factory, "trained_project", project.run_pipeline)


@pytest.fixture
def finished(trained_project: project.PipelineRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained project, as the current folder."""
    path = project.copy(trained_project.path, tmp_path / "project")
    monkeypatch.chdir(path)
    for name, value in project.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files: one worker makes the trained project, the slowest fixture; others run other files meanwhile.

    The remaining files that need it are short and come last, so that the workers end together.
    """
    files = list(dict.fromkeys(item.path for item in reversed(items)))
    needing = [
        file for file in files if any("trained_project" in fixtures(item) for item in items if item.path == file)
    ]
    others = [file for file in files if file not in needing]
    half = len(others) // 2
    order = [*needing[:1], *others[:half], *needing[1:], *others[half:]]
    items.sort(key=lambda item: order.index(item.path))


def fixtures(item: pytest.Item) -> list[str]:
    """Names of the fixtures that a test uses."""
    return getattr(item, "fixturenames", [])


@pytest.fixture(scope="module")
def postgres() -> Iterator[postgresql.PostgreSQL]:
    """A PostgreSQL server; tests that stop it start it again."""
    with postgresql.run_postgresql() as running:
        yield running
