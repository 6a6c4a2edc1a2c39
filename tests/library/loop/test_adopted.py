"""Real tables that were made elsewhere, from adopt to answers over HTTP and a drift report, in one process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sklearn import datasets

from flywheel_ml.core import bundle, paths
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.metrics import HEADLINE
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.data import ingest, split, validate
from flywheel_ml.data.adoption import adopt
from flywheel_ml.data.adoption.overrides import Overrides
from flywheel_ml.flows import monitoring, scoring
from flywheel_ml.model.evaluation import evaluate
from flywheel_ml.model.packaging import package
from flywheel_ml.model.training import train
from flywheel_ml.serving.app import create_app
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.testing.servers import ServingFolder
from library.helpers import project
from library.helpers.adoption_helpers import NOW
from library.helpers.project import PROJECT
from library.helpers.servers import InProcess

FILES = (
    *("contract.yaml", "decisions.yaml", "params.yaml", "pyproject.toml", "README.md", "Makefile"),
    *(f"src/{project.PACKAGE}/{name}" for name in ("features.py", "source.py")),
)
ADOPTED = replace(PROJECT, features=())
"""The project, without features of the example's columns."""
REAL: dict[str, tuple[Any, str, str]] = {
    "iris": (datasets.load_iris, "multiclass", "kind of iris"),
    "breast cancer": (datasets.load_breast_cancer, "binary", "class"),
    "diabetes": (datasets.load_diabetes, "regression", "progress (after a year)"),
}
IN_FULL = ("breast cancer", "diabetes")
"""Other tests adopt a table of two classes, and one of numbers, too."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: this project without anything that was run, and without features of its own."""
    path = tmp_path / "project"
    for name in FILES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project.ROOT / name, path / name)
    monkeypatch.chdir(path)
    return path


def real(name: str, path: Path) -> tuple[str, str]:
    """Write a table of scikit-learn's as a CSV file; its task and its target."""
    load, task, target = REAL[name]
    found = load()
    labels = [str(found.target_names[at]) for at in found.target] if task != "regression" else found.target
    columns = {str(column): found.data[:, at] for at, column in enumerate(found.feature_names)}
    pl.DataFrame({**columns, target: labels}).write_csv(path)
    return task, target


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in IN_FULL else name for name in REAL]
)
def test_it_is_trained_served_and_monitored(name: str, here: Path) -> None:
    table = here.parent / f"{name}.csv"
    task, target = real(name, table)
    former = {column.name for column in Contract.load(paths.CONTRACT).columns}
    with adopt.examine(str(table), "", target, Overrides(), NOW) as found:
        adopt.adopt_table(found, Settings(), ADOPTED)
    of_the_former = [name for name in former if "_" in name]
    assert [(name, word) for name in FILES for word in of_the_former if word in (here / name).read_text()] == []
    project.set_params(here, {"train": {"hist_gradient_boosting": {"max_iter": 20, "min_samples_leaf": 5}}})
    for step in (ingest, validate, split, train, evaluate, package):
        step.main(ADOPTED)
    contract, params = Contract.load(paths.CONTRACT), Params.load(paths.PARAMS)
    made = bundle.verify(paths.BUNDLE)
    assert (contract.task, made.target) == (task, target)
    # Of ridge regression on 66 rows of the diabetes table: 0.48 ± 0.09 over splits, and 0.23 on this one.
    assert made.metrics["test"][HEADLINE[contract.task]] > 0.2
    assert "## Decisions" in (paths.REPORTS / "data_card.md").read_text()

    ServingFolder(Path("var/serving"), paths.BUNDLE).roll_out("1")
    scored = Path("build/scored.parquet")
    scoring.score(ADOPTED, params.data.raw, scored, Settings(), params.score)
    rows = pl.read_parquet(scored).head(60)
    with InProcess(create_app(Settings())) as server:
        answer = server.request("POST", "/predict", json={"instances": json_rows(rows, contract)})
        assert answer.status_code == 200, answer.text
        told = answer.json()["predictions"]
        assert [one["prediction"] for one in told] == rows["prediction"].to_list()
        asked = Path("README.md").read_text().partition("--data '")[2].partition("'\n")[0].replace("'\\''", "'")
        example = server.request("POST", "/predict", json=json.loads(asked))
        assert example.status_code == 200, example.text
    watched = monitoring.monitor_window(ADOPTED, Settings(), params, scored, None, None)
    assert watched.result.volume.rows == pl.read_parquet(scored).height
    assert watched.html.is_file()
