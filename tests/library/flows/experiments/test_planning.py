"""A plan states rows and days from what the log shows, or asks for what it lacks in one line."""

from pathlib import Path

import pytest

from flywheel_ml.core.params import Params
from flywheel_ml.experiments.planning import Period, plan_sample_size
from flywheel_ml.flows.experiments import planning
from flywheel_ml.flows.experiments.planning import PlanOptions, plan_experiment
from flywheel_ml.utils.errors import ProjectError
from library.helpers import project
from library.helpers.experiments import Experiment, Version


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.chdir(tmp_path)
    return Experiment.create(tmp_path)


@pytest.fixture(scope="module")
def params() -> Params:
    return Params.load(project.ROOT / "params.yaml")


def test_plan_measures_variance_and_rows_a_day(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5)}, count=2000)
    found = plan_experiment(experiment.settings, params, PlanOptions(0.5, "revenue", shares=(0.25, 0.25)))
    assert found.baseline.mean == pytest.approx(10, abs=0.5)
    assert found.baseline.deviation == pytest.approx(5, abs=0.3)
    assert found.baseline.rows_per_day == pytest.approx(24_000, rel=0.6)
    size = plan_sample_size(
        0.5,
        (found.baseline.deviation**2,) * 2,
        [Period(1 / 3)],
        1.0,
        alpha=0.025,
        sequential_alpha=0.0125,
    )
    (first, second) = found.arms
    assert first == second
    assert first.fixed == pytest.approx(size.fixed / 0.75)
    assert first.days[0] == pytest.approx(first.fixed / found.baseline.rows_per_day)
    assert len(list(planning.build_rows(found))) == 3
    assert "divided among 2 versions" in planning.describe_method(found)


def test_plan_of_the_loss_uses_its_labelled_rows(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5)}, count=2000)
    found = plan_experiment(experiment.settings, params, PlanOptions(0.05))
    assert found.champion_share == pytest.approx(0.9)
    assert "of the champion, last 28 days" in found.baseline.source
    assert dict(planning.describe(found))["shares"] == "10.0%; champion 90.0%"


def test_given_rate_and_rows_need_no_log(experiment: Experiment, params: Params) -> None:
    options = PlanOptions(0.01, "clicks", shares=(0.5,), rate=0.05, rows_per_day=1000)
    found = plan_experiment(experiment.settings, params, options)
    # Twice (1.96 + 0.84)² times the mean variance, for each of the two.
    assert found.arms[0].fixed == pytest.approx(16_300, rel=0.05)
    assert found.arms[0].days[0] == pytest.approx(found.arms[0].fixed / 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PlanOptions(0.0), "EFFECT is 0; give a difference above 0"),
        (PlanOptions(float("nan")), "EFFECT is nan"),
        (PlanOptions(0.01), r"the champion has 0 labels in the last 28 days.*give DEVIATION= of one row, or RATE="),
        (PlanOptions(0.01, "revenue"), "the champion has 0 values of revenue"),
        (PlanOptions(0.01, deviation=1.0), "the rows a day are unknown; give PER_DAY="),
        (PlanOptions(0.01, rate=1.5), "RATE is 1.5; give a rate between 0 and 1"),
        (PlanOptions(0.01, rate=0.1, deviation=1.0), "RATE and DEVIATION both give the variance"),
        (PlanOptions(0.01, power=1.0), "POWER is 1; give a probability"),
        (PlanOptions(0.01, shares=(0.5, 0.5), deviation=1.0), "leave nothing for the champion"),
        (PlanOptions(0.01, shares=(1.5,)), "SHARES: 1.5 is not a share"),
        (PlanOptions(0.01, "Revenue"), "METRIC: 'Revenue' is not a name of a metric"),
    ],
)
def test_impossible_plan_is_one_line(
    experiment: Experiment, params: Params, options: PlanOptions, message: str
) -> None:
    with pytest.raises(ProjectError, match=message) as found:
        plan_experiment(experiment.settings, params, options)
    assert "\n" not in str(found.value)
