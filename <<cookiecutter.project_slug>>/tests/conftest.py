"""What every test may use: the project's own contract and parameters, a small table, a small real bundle."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from << cookiecutter.package_name >> import stage
from << cookiecutter.package_name >>.contract import Columns, Contract
from << cookiecutter.package_name >>.data import tables
from << cookiecutter.package_name >>.data.split import split
from << cookiecutter.package_name >>.model import evaluate, package, train
from << cookiecutter.package_name >>.model.gate import Check
from << cookiecutter.package_name >>.model.registry import Registry, Version
from << cookiecutter.package_name >>.params import Params
from << cookiecutter.package_name >>.settings import QUIET

from . import project, rows, store

ROOT = Path(__file__).parent.parent


def pytest_configure() -> None:
    """What the tests import is as quiet, towards people and the world, as when the command line imports it."""
    os.environ.update(QUIET)


@pytest.fixture(scope="session")
def contract() -> Contract:
    """The project's contract."""
    return Contract.load(ROOT / stage.CONTRACT)


@pytest.fixture(scope="session")
def params() -> Params:
    """The project's parameters, with a smaller model."""
    params = Params.load(ROOT / stage.PARAMS)
    small = params.train.hist_gradient_boosting.model_copy(update={"max_iter": 15})
    return params.model_copy(
        update={
            "train": params.train.model_copy(update={"hist_gradient_boosting": small, "baseline_rows": 500}),
            "evaluate": params.evaluate.model_copy(update={"min_slice_rows": 20}),
        }
    )


@pytest.fixture(scope="session")
def table(contract: Contract) -> pl.DataFrame:
    """3,000 rows that keep the contract, target included, in order of time."""
    return rows.make(contract, 3000)


@pytest.fixture(scope="session")
def columns(table: pl.DataFrame, contract: Contract) -> Columns:
    """The table's input columns."""
    return tables.to_columns(table, contract.inputs)


@pytest.fixture(scope="session")
def bundle_path(
    tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame, contract: Contract, params: Params
) -> Path:
    """A sealed bundle, made of the table by the project's own stages. Tests that change it take a copy."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", table, contract, params)


def make_bundle(path: Path, table: pl.DataFrame, contract: Contract, params: Params) -> Path:
    """Split, train, evaluate and package a table, as the pipeline does."""
    parts = split(table, contract, params.split, None)
    fitted = train.train(parts["train"], contract, params)
    judged = {name: parts[name] for name in ("validation", "test")}
    pipelines = {"model": fitted.model, "linear": fitted.baseline}
    evaluation = evaluate.evaluate(pipelines, judged, contract, params, fitted.prior)
    moments = {name: part[contract.time.name] if contract.time else pl.Series([0]) for name, part in parts.items()}
    reports: dict[str, Any] = {
        "split": {
            name: {
                "rows": part.height,
                "sha256": "0" * 64,
                "first": str(moments[name][0]),
                "last": str(moments[name][-1]),
            }
            for name, part in parts.items()
        },
        "trained": {"estimator": params.train.estimator, "prior": fitted.prior},
        "evaluation": evaluation,
    }
    package.pack(path, ROOT / stage.CONTRACT, fitted.model, parts, params, reports)
    return path


def python_rows(frame: pl.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    """The input columns as rows of plain Python values, as JSON would carry them."""
    named = frame.select(column.name for column in contract.inputs)
    return [
        {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
        for row in named.to_dicts()
    ]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two float arrays are equal to the last bit."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[store.Store]:
    """MLflow's store that four processes opened at once when it was not there yet."""
    with store.opened_by_four(tmp_path_factory.mktemp("store") / "project") as opened:
        yield opened


@pytest.fixture
def folder(fresh_store: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of the fresh store."""
    path = shutil.copytree(fresh_store.untouched, tmp_path / "project")
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def registry(folder: Path) -> Registry:
    """An empty registry in the current folder."""
    return Registry.open(store.settings(folder), store.NAME)


@pytest.fixture
def register(registry: Registry, bundle_path: Path) -> Callable[[Sequence[Check]], Version]:
    """Registers the tiny bundle with the answers of gates."""

    def call(checks: Sequence[Check]) -> Version:
        return registry.register(bundle_path, checks, {"seed": 1}, {"git_commit": "abc"}, [])

    return call


@pytest.fixture(scope="session")
def turned(tmp_path_factory: pytest.TempPathFactory) -> project.Turned:
    """A small project through which the wheel was turned, after a first run that was killed."""
    return project.turn(tmp_path_factory.mktemp("turned") / "project")


@pytest.fixture
def finished(turned: project.Turned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the turned project, as the current folder."""
    path = project.copy(turned.path, tmp_path / "project")
    monkeypatch.chdir(path)
    for name, value in project.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share out whole files; all that stands on the one turned project goes to one worker."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("turned" if "turned" in fixtures else str(item.path)))
