"""A search for parameters is a pure function of what it is given: killed and resumed, it chooses what it would have."""

import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from flywheel_ml.core import paths
from flywheel_ml.core.catalog import STANDARD_ESTIMATORS, SearchRange
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params, TrainParams
from flywheel_ml.flows import training
from flywheel_ml.model.training import train, tune
from flywheel_ml.utils.errors import Busy
from flywheel_ml.utils.files import read_json
from library.helpers import project

TRIALS = 14
SEARCH = f"""
import sys, time
from pathlib import Path
from flywheel_ml.core import paths
from flywheel_ml.model.training import tune
from flywheel_ml.core.params import Params

def loss(tried):
    print("trial", flush=True)
    time.sleep(0.1)
    found = tried.hist_gradient_boosting
    return abs(found.learning_rate - 0.07) + found.max_leaf_nodes / 1e4

paths.TUNING = Path(sys.argv[1])
params = Params.load(paths.PARAMS)
params = params.model_copy(update={{"tune": params.tune.model_copy(update={{"trials": {TRIALS}}})}})
tune.run(loss, params, "k" * 64, lambda text: None)
"""
"""What `tune.run(loss, …)` does in this process, so slowly that it can be killed on the way."""


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "TUNING", tmp_path / "tuning")
    return tmp_path / "tuning"


def with_trials(params: Params, trials: int) -> Params:
    return params.model_copy(update={"tune": params.tune.model_copy(update={"trials": trials})})


def loss(tried: TrainParams) -> float:
    return abs(tried.hist_gradient_boosting.learning_rate - 0.07) + tried.hist_gradient_boosting.max_leaf_nodes / 1e4


def completed(path: Path) -> int:
    if not path.is_file():
        return 0
    try:
        with sqlite3.connect(path) as database:
            return int(database.execute("select count(*) from trials where state = 'COMPLETE'").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.chaos
@pytest.mark.full
def test_killed_search_resumes_and_chooses_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[TrainParams] = []

    def counted(found: TrainParams) -> float:
        tried.append(found)
        return loss(found)

    def search(folder: Path) -> dict[str, Any]:
        tried.clear()
        monkeypatch.setattr(paths, "TUNING", folder)
        params = with_trials(Params.load(project.ROOT / paths.PARAMS), TRIALS)
        return tune.run(counted, params, "k" * 64, lambda text: None).report()

    killed = tmp_path / "killed"
    straight = search(tmp_path / "straight")
    assert len(tried) == TRIALS
    with project.start(project.ROOT, "-c", SEARCH, str(killed)) as process:
        assert process.stdout is not None
        for _ in range(6):
            assert process.stdout.readline() == "trial\n"
        process.send_signal(signal.SIGKILL)
    before = completed(killed / f"{'k' * 16}.db")
    assert 5 <= before < TRIALS
    assert search(killed) == straight
    assert len(tried) == TRIALS - before


@pytest.mark.chaos
@pytest.mark.full
def test_train_stage_killed_while_tuning_writes_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.set_params(finished, {"tune": {"trials": 5, "max_rows": 300}})
    other = project.copy(finished, tmp_path / "other")
    train.main(project.PROJECT)
    with project.start(other, "-m", project.PACKAGE, "stage", "train") as process:
        while process.poll() is None and not any(completed(kept) >= 2 for kept in other.glob("var/tuning/*.db")):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    capsys.readouterr()
    monkeypatch.chdir(other)
    train.main(project.PROJECT)
    assert "trial(s) of an earlier run" in capsys.readouterr().out
    for name in ("train", "tuning"):
        report = paths.REPORTS / f"{name}.json"
        assert (other / report).read_bytes() == (finished / report).read_bytes()
    tuned = read_json(finished / paths.REPORTS / "train.json")["tuned"]
    assert (tuned["trials"], tuned["loss"] <= tuned["loss_untuned"]) == (5, True)
    assert "trials took" in training._summarize_stage(
        "train", Contract.load(finished / paths.CONTRACT), Params.load(finished / paths.PARAMS)
    )


def test_more_trials_add_to_those_there_are(tuning: Path, params: Params) -> None:
    few = tune.run(loss, with_trials(params, 3), "k", print)
    tried: list[TrainParams] = []

    def counted(found: TrainParams) -> float:
        tried.append(found)
        return loss(found)

    many = tune.run(counted, with_trials(params, 6), "k", print)
    assert (many.trials[:3], len(tried)) == (few.trials, 3)
    assert tune.run(loss, with_trials(params, 3), "k", print).trials == few.trials


def test_first_trial_uses_the_parameters_of_params_yaml(tuning: Path, params: Params) -> None:
    found = tune.run(loss, with_trials(params, 5), "k", print)
    assert found.trials[0].parameters == {}
    assert tune.apply_parameters(params.train, {}) == params.train
    assert found.best.loss <= loss(params.train)


def test_parameters_that_fail_to_train_count_as_infinite_loss(tuning: Path, params: Params) -> None:
    def fragile(tried: TrainParams) -> float:
        if tried != params.train:
            raise ValueError("Solver produced non-finite parameter weights")
        return 1.0

    def hopeless(_: TrainParams) -> float:
        raise ValueError("none at all")

    assert tune.run(fragile, with_trials(params, 4), "k", print).best.parameters == {}
    with pytest.raises(ValueError, match="none at all"):
        tune.run(hopeless, with_trials(params, 2), "other", print)


def test_two_searches_for_the_same_at_once_are_refused(tuning: Path, params: Params) -> None:
    def nested(_: TrainParams) -> float:
        with pytest.raises(Busy, match="another process is tuning"):
            tune.run(loss, with_trials(params, 1), "k", print)
        return 1.0

    tune.run(nested, with_trials(params, 1), "k", print)


@pytest.mark.parametrize("name", list(STANDARD_ESTIMATORS))
def test_every_parameter_that_is_searched_is_one_of_the_estimator(name: str, params: Params) -> None:
    train = params.train.model_copy(update={"estimator": name})
    for key, space in STANDARD_ESTIMATORS[name].search.items():
        ends = (space.low, space.high) if isinstance(space, SearchRange) else tuple(space)
        for end in ends:
            tune.apply_parameters(train, {key: end})
    assert yaml.safe_load((project.ROOT / paths.PARAMS).read_text())["train"][name]
