"""What every test may use: the project's own contract and parameters, a small table, a small real bundle."""

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
from << cookiecutter.package_name >>.params import Params

from . import rows

ROOT = Path(__file__).parent.parent


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
def bundle_path(tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame, contract: Contract, params: Params) -> Path:
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
            name: {"rows": part.height, "sha256": "0" * 64, "first": str(moments[name][0]), "last": str(moments[name][-1])}
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
