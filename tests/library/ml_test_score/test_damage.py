"""A damaged file costs a named point and does not end the command."""

from pathlib import Path

import numpy as np
import pytest

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.core.params import MonitorParams
from flywheel_ml.core.project import Project
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.replay.synthetic import plant, stream
from flywheel_ml.ml_test_score import personal_data, traffic
from flywheel_ml.prediction_log import Writer
from flywheel_ml.prediction_log.retention import requests, tombstones
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.utils.files import write_json

PARAMS = plant.make_params(MonitorParams(), 1)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An empty project folder, as the current one."""
    monkeypatch.chdir(tmp_path)
    return Settings(_env_file=None)


def test_damaged_bundle_of_a_logged_version_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = stream.build_plant(tmp_path, MonitorParams(), 3, 1)
    monkeypatch.chdir(tmp_path)
    rows = plant.draw_rows(1500, np.random.default_rng(3))
    with Writer(built.settings.prediction_log, "serve") as log:
        log.append(stream._build_rows(rows, built.bundle, built.start_us)).result()
    (model,) = (tmp_path / "serving").rglob("model.onnx")
    model.write_bytes(model.read_bytes() + b"x")
    found = traffic.examine(Project(package="synthetic"), built.settings, plant.CONTRACT, built.params)
    assert found.rows == 1500
    assert found.agreement is None
    assert "model.onnx was changed" in found.skew_problem


@pytest.mark.parametrize("content", ["", "{broken", "[1]", '{"salt": 3}'])
def test_damaged_list_of_erasures_is_a_problem(settings: Settings, content: str) -> None:
    path = Log.of_settings(settings).folder / requests.FOLDER / tombstones.FILE
    path.parent.mkdir(parents=True)
    path.write_text(content)
    found = personal_data.search(settings, plant.CONTRACT, PARAMS)
    assert found.erased_problem.startswith("erased.json of the log is damaged")


def test_erasures_that_no_table_can_show_are_a_problem(settings: Settings) -> None:
    """Without an id column, or without a table, nothing was read."""
    without_id = plant.CONTRACT
    assert without_id.id is None
    with_id = Contract(
        name="orders",
        columns=(
            Column(name="order", type="string", role="id"),
            Column(name="size", type="float"),
            Column(name="late", type="boolean", role="target"),
        ),
    )
    assert personal_data.search(settings, without_id, PARAMS).erased_problem == ""
    path = Log.of_settings(settings).folder / requests.FOLDER / tombstones.FILE
    stones = tombstones.Tombstones(salt="00")
    write_json(path, stones.model_copy(update={"keys": (stones.hash_key("ada"),)}).model_dump(mode="json"))
    for contract, problem in ((without_id, "the contract has no column with role id"), (with_id, "there is no table")):
        assert personal_data.search(settings, contract, PARAMS).erased_problem.startswith(problem)
