"""The report of an experiment states what the log shows, and says plainly when that is nothing."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from flywheel_ml.core.params import Params
from flywheel_ml.flows.experiments import reporting, text
from flywheel_ml.flows.experiments.reporting import FOLDER, ReportOptions, report_experiment
from flywheel_ml.flows.experiments.result import ArmResult, ExperimentReport
from flywheel_ml.prediction_log import Prediction, now_us
from flywheel_ml.utils.errors import ProjectError
from library.helpers import experiments, project
from library.helpers.experiments import HOUR_US, Experiment, Version


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.chdir(tmp_path)
    return Experiment.create(tmp_path)


@pytest.fixture(scope="module")
def params() -> Params:
    return Params.load(project.ROOT / "params.yaml").model_copy(
        update={
            "evaluate": Params.load(project.ROOT / "params.yaml").evaluate.model_copy(update={"slices": ("origin",)})
        }
    )


def report(experiment: Experiment, params: Params, **options: object) -> ExperimentReport:
    return report_experiment(experiment.settings, params, ReportOptions(**options))  # type: ignore[arg-type]


def arm(found: ExperimentReport, version: str) -> ArmResult:
    return next(one for one in found.arms if one.version == version)


def test_report_finds_a_better_and_a_worse_version(experiment: Experiment, params: Params) -> None:
    arms = {"2": Version(0.3, wrong=0.05), "3": Version(0.3, wrong=0.45)}
    experiment.log(Version(None), arms, count=6000)
    found = report(experiment, params)
    assert (arm(found, "2").verdict, arm(found, "3").verdict) == ("better", "worse")
    assert text.summarise(found) == "Version 2 is better and version 3 is worse than the champion"
    assert (found.metric, found.loss, found.better, found.is_running) == ("loss", "log", "lower", True)
    assert found.arm_alpha == found.alpha / 2
    assert found.champion_rows + sum(one.rows for one in found.arms) == 6000
    for one in found.arms:
        assert one.labelled == one.rows
        assert one.mean is not None
        assert one.champion_mean is not None
        assert one.difference.estimate == pytest.approx(one.mean - one.champion_mean)
        assert not any(guard.tripped for guard in (*one.guards, *found.guards))
        widths = [
            look.difference.high - look.difference.low
            for look in one.looks
            if look.difference.high is not None and look.difference.low is not None
        ]
        assert widths[0] > widths[-1]
    assert {(part.column, part.value) for part in arm(found, "2").slices} == {("origin", "EWR"), ("origin", "JFK")}
    assert found.slice_alpha == found.arm_alpha / 2


def test_report_is_written_as_json_markdown_and_page(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5, wrong=0.05)})
    found = report(experiment, params)
    assert ExperimentReport.model_validate_json((FOLDER / "loss.json").read_text(), strict=False) == found
    markdown, page = ((FOLDER / f"loss.{suffix}").read_text() for suffix in ("md", "html"))
    for content in (markdown, page):
        assert "Version 2 is better than the champion" in content
        assert "origin" in content
        assert "sample ratio" in content
    assert page.count("<svg") == 4  # Two plots in two widths each.
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_business_metric_decides_in_its_own_direction(experiment: Experiment, params: Params) -> None:
    arms = {"2": Version(0.3, revenue=12.0), "3": Version(0.3, revenue=8.0)}
    experiment.log(Version(None), arms, count=6000)
    found = report(experiment, params, metric="revenue")
    assert (found.better, arm(found, "2").verdict, arm(found, "3").verdict) == ("higher", "better", "worse")
    lower = report(experiment, params, metric="revenue", better="lower")
    assert (arm(lower, "2").verdict, arm(lower, "3").verdict) == ("worse", "better")
    assert (FOLDER / "revenue.html").is_file()


def test_missing_values_can_count_as_zero(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5)}, count=2000)
    since = now_us() - HOUR_US
    silent = experiments.draw_rows(Version(None, revenue=None), {"2": Version(0.5, revenue=None)}, 2000, 2, since)
    experiment.write(silent)
    some, every = (report(experiment, params, metric="revenue", missing_as_zero=zero) for zero in (False, True))
    assert (arm(every, "2").rows, arm(every, "2").labelled) == (arm(some, "2").rows, arm(some, "2").rows)
    assert arm(some, "2").labelled < arm(some, "2").rows
    means = arm(some, "2").mean, arm(every, "2").mean
    assert means[0] is not None
    assert means[1] == pytest.approx(means[0] / 2, rel=0.1)


def test_shadow_is_compared_row_by_row(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(None, wrong=0.05)})
    found = report(experiment, params)
    assert (arm(found, "2").share, arm(found, "2").verdict, arm(found, "2").labelled) == (None, "better", 3000)
    money = report(experiment, params, metric="revenue")
    assert arm(money, "2").verdict == "no data"
    assert "a shadow answers nobody, so it has no effect on revenue" in arm(money, "2").reason


def test_periods_are_strata_that_are_never_pooled(experiment: Experiment, params: Params) -> None:
    """Outcomes get better while the share grows, so that the pooled rates differ although the versions do not."""
    now = now_us()
    starts = [now - 3 * HOUR_US, now - 2 * HOUR_US]
    experiments.write_audit(experiment.settings.serving_folder, [(starts[0], {"2": 0.05}), (starts[1], {"2": 0.5})])
    for at, (start, share, wrong) in enumerate(zip(starts, (0.05, 0.5), (0.45, 0.05), strict=True)):
        rows = experiments.draw_rows(Version(None, wrong), {"2": Version(share, wrong)}, 4000, at, start + 60_000_000)
        experiment.write(rows)
    found = report(experiment, params)
    assert found.periods == 2
    assert arm(found, "2").verdict == "undecided"
    assert "nothing can be concluded yet" in arm(found, "2").reason
    assert "more with a value are needed" in arm(found, "2").reason or "by now" in arm(found, "2").reason


def test_canary_is_one_experiment_from_its_shadow_to_its_last_share(experiment: Experiment, params: Params) -> None:
    now = now_us()
    steps = [(now - (3 - at) * HOUR_US, share) for at, share in enumerate((None, 0.05, 0.5))]
    experiments.write_audit(experiment.settings.serving_folder, [(start, {"2": share}) for start, share in steps])
    for at, (start, share) in enumerate(steps):
        arms = {"2": Version(share, wrong=0.05)}
        experiment.write(experiments.draw_rows(Version(None), arms, 1500, at, start + 60_000_000))
    found = report(experiment, params)
    assert (found.periods, arm(found, "2").share, arm(found, "2").verdict) == (3, 0.5, "better")
    # Both answered the rows of the shadow; the last minute of a step falls into the next one.
    assert found.champion_rows + arm(found, "2").rows == pytest.approx(4500 + 1500, abs=100)
    assert any("row by row" in note for note in found.notes)
    money = report(experiment, params, metric="revenue")
    assert arm(money, "2").labelled < arm(money, "2").rows
    assert arm(money, "2").verdict == "undecided"


def test_experiment_without_rows_says_so(experiment: Experiment, params: Params) -> None:
    experiments.write_audit(experiment.settings.serving_folder, [(now_us() - HOUR_US, {"2": 0.5, "3": 0.2})])
    found = report(experiment, params)
    assert [one.verdict for one in found.arms] == ["no data", "no data"]
    assert "no rows reached version 2; check that servers use this serving folder" in found.arms[0].reason
    assert text.summarise(found) == "Nothing can be concluded yet"
    assert {guard.state for guard in (*found.guards, *found.arms[0].guards)} == {"not measured"}
    assert (FOLDER / "loss.html").is_file()


def test_silent_arm_is_named_and_the_others_are_judged(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5, wrong=0.05), "3": Version(0.0)}, count=4000)
    experiments.write_audit(experiment.settings.serving_folder, [(now_us() - 2 * HOUR_US, {"2": 0.5, "3": 0.2})])
    found = report(experiment, params)
    assert {one.verdict for one in found.arms} == {"not valid"}
    assert "sample ratio" in found.arms[0].reason
    assert "0 rows" in found.guards[0].detail or ", 0 rows" in found.guards[0].detail


def test_rows_without_labels_are_no_data(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None, labelled=0.0), {"2": Version(0.5, labelled=0.0)})
    found = report(experiment, params)
    assert arm(found, "2").reason == (
        "neither model has labels yet; send them to /feedback, or import them: make labels FILE="
    )


def test_labels_that_depend_on_the_version_invalidate_the_comparison(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5, labelled=0.5)}, count=4000)
    found = report(experiment, params)
    assert arm(found, "2").verdict == "not valid"
    assert arm(found, "2").reason.startswith("labelled rows: ")


def test_errors_and_slowness_trip_the_guards_of_their_arm(experiment: Experiment, params: Params) -> None:
    arms = {"2": Version(0.3, failing=0.1), "3": Version(0.3, latency_us=900_000)}
    experiment.log(Version(None), arms, count=4000)
    found = report(experiment, params)
    tripped = {(one.version, guard.name) for one in found.arms for guard in one.guards if guard.tripped}
    assert ("2", "errors") in tripped
    assert ("3", "latency") in tripped
    assert ("2", "latency") not in tripped
    assert ("3", "errors") not in tripped
    assert arm(found, "2").errors == pytest.approx(120, abs=40)


def test_few_rows_are_no_result(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5)}, count=60)
    found = report(experiment, params)
    assert arm(found, "2").verdict == "no data"
    assert "need 50 rows with a value each" in arm(found, "2").reason
    assert arm(found, "2").difference.low is None


def test_entities_with_several_rows_count_once(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5)}, count=1)
    rows = experiments.draw_rows(Version(None), {"2": Version(0.5)}, 2000, 3, now_us() - HOUR_US)
    owners: dict[str, str] = {}
    repeated = []
    for row in rows:
        if isinstance(row, Prediction):
            entity = f"{row.model_version}-{len(owners) // 4}"
            owners[row.id] = entity
            repeated.append(row._replace(entity_id=entity))
        else:
            repeated.append(row)  # type: ignore[arg-type]
    experiment.write(repeated)
    found = report(experiment, params)
    assert found.champion_labelled + arm(found, "2").labelled < 1200
    assert any("each entity counts once" in note for note in found.notes)
    with pytest.raises(ProjectError, match=r"ZERO=1 .* needs one row for each entity"):
        report(experiment, params, metric="revenue", missing_as_zero=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "revenu"}, "the log has no value of 'revenu'; did you mean 'revenue'"),
        ({"metric": "Revenue"}, "'Revenue' is not a name of a metric"),
        ({"effect": 0.0}, "EFFECT is 0; give a difference above 0"),
        ({"effect": float("inf")}, "EFFECT is inf"),
        ({"missing_as_zero": True}, "ZERO=1 .* is for a business metric"),
        ({"since_us": 4_000_000_000_000_000}, "has no rows yet: it began at .* give an earlier SINCE="),
    ],
)
def test_impossible_question_is_one_line(
    experiment: Experiment, params: Params, options: dict[str, object], message: str
) -> None:
    experiment.log(Version(None), {"2": Version(0.5)}, count=100)
    with pytest.raises(ProjectError, match=message) as found:
        report(experiment, params, **options)
    assert "\n" not in str(found.value)


def test_project_without_an_experiment_says_how_to_start_one(experiment: Experiment, params: Params) -> None:
    experiments.write_audit(experiment.settings.serving_folder, [(now_us(), {})])
    with pytest.raises(ProjectError, match=r"there has been no experiment; start one: make experiment SHARE=0.1"):
        report(experiment, params)


def test_ended_experiment_is_reported_until_its_end(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5, wrong=0.05)}, ago=5)
    start = now_us() - 5 * HOUR_US
    experiments.write_audit(experiment.settings.serving_folder, [(start, {"2": 0.5}), (start + 2 * HOUR_US, {})])
    found = report(experiment, params)
    assert not found.is_running
    assert timedelta(hours=1.9) < found.until - found.since < timedelta(hours=2)
    assert arm(found, "2").verdict == "better"


def test_summary_of_a_report_fits_json(experiment: Experiment, params: Params) -> None:
    experiment.log(Version(None), {"2": Version(0.5)}, count=200)
    found = report(experiment, params, effect=0.3)
    content = json.loads((reporting.FOLDER / "loss.json").read_text())
    assert (content["effect"], content["effect_is_given"]) == (0.3, True)
    assert content["arms"][0]["verdict"] == found.arms[0].verdict
