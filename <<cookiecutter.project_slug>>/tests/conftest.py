"""What the tests share: this project's contract and parameters, synthetic rows, a model of them, and its server."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest
from flywheel_ml.cli.verbs import ENVIRONMENT
from flywheel_ml.core import paths
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.testing import rows
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.evidence import EvidenceRecorder
from flywheel_ml.testing.servers import Server, ServingFolder

from << cookiecutter.package_name >>.project import PROJECT

ROOT = Path(__file__).parents[1]
DAYS = 20
"""Validation days and test days of the synthetic rows."""


def pytest_configure(config: pytest.Config) -> None:
    """Run in the environment of the command line (no telemetry, no network), and record which attacks passed."""
    os.environ.update(ENVIRONMENT)
    config.pluginmanager.register(EvidenceRecorder(ROOT))


@pytest.fixture(scope="session")
def contract() -> Contract:
    """The project's contract."""
    return Contract.load(ROOT / paths.CONTRACT)


@pytest.fixture(scope="session")
def params(contract: Contract) -> Params:
    """The project's parameters, with a model that trains in a second and without what only real rows satisfy."""
    found = PROJECT.load_params(ROOT / paths.PARAMS)
    days = DAYS if found.split.by == "time" else None
    small = found.train.hist_gradient_boosting.model_copy(update={"max_iter": 20})
    changes = {
        "split": {"group": None, "validation_days": days, "test_days": days},
        "train": {"estimator": "hist_gradient_boosting", "hist_gradient_boosting": small, "sklearn_default": False},
        "tune": {"trials": 0},
        "evaluate": {"min_slice_rows": 20},
        "gates": {"min_score": 0.3, "min_gain_over_linear": None, "min_slice_score": 0.0, "max_slice_drop": None},
    }
    return found.model_copy(
        update={group: getattr(found, group).model_copy(update=values) for group, values in changes.items()}
    )


@pytest.fixture(scope="session")
def table(contract: Contract) -> pl.DataFrame:
    """2,000 rows that satisfy the contract, target included, in order of time."""
    return rows.make_table(contract, 2000)


@pytest.fixture(scope="session")
def columns(table: pl.DataFrame, contract: Contract) -> Columns:
    """The table's input columns."""
    return tables.to_columns(table, contract.inputs)


@pytest.fixture(scope="session")
def bundle_path(
    tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame, contract: Contract, params: Params
) -> Path:
    """A bundle trained on the table, with the project's own features."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    return make_bundle(path, table, contract, params, PROJECT.features)


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    """That bundle, opened."""
    return Bundle.open(bundle_path, features=PROJECT.features)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Path:
    """A folder as a server's: `serving`, where the bundle is champion, and the prediction log `log`."""
    path = tmp_path_factory.mktemp("home")
    for name in (paths.CONTRACT, paths.PARAMS):
        shutil.copyfile(ROOT / name, path / name)
    ServingFolder(path / "serving", bundle_path).roll_out("1")
    return path


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[Server]:
    """The command `serve`, on a free port."""
    with Server(PROJECT.package, home) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of that server."""
    with server.client() as client:
        yield client
