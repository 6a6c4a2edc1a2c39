"""Evidence about a canary is counted from a log: assigned rows, errors, latencies, and losses of labelled rows."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel_ml.core.contract import Contract
from flywheel_ml.experiments.canary import decide
from flywheel_ml.experiments.evidence import LATENCY_EDGES, CanaryPlan, Step
from flywheel_ml.experiments.log_counts import ExperimentReader
from flywheel_ml.experiments.log_evidence import Models, StepSpan, read_evidence
from flywheel_ml.experiments.losses import MIN_PROBABILITY, compute_loss
from flywheel_ml.experiments.sequential import LossSums
from flywheel_ml.prediction_log import Prediction, Row, Writer
from library.helpers import experiments, postgresql
from library.helpers.canaries import SECOND_US, Traffic
from library.helpers.experiments import Version

START_US = 1_400_000_000 * SECOND_US
LATER_US = START_US + 100 * SECOND_US
CHAMPION, CHALLENGER = "a" * 64, "b" * 64
PAIRED = CanaryPlan(margin=0.02)
RANDOMISED = CanaryPlan(margin=0.02, comparison="randomised")
SPANS = (StepSpan(0, START_US, LATER_US), StepSpan(1, LATER_US, LATER_US + 100 * SECOND_US))


@pytest.fixture(scope="module")
def models(contract: Contract) -> Models:
    return Models(CHAMPION, CHALLENGER, contract)


def traffic(since_us: int = START_US, **changed: Any) -> Traffic:
    return Traffic(CHAMPION, CHALLENGER, since_us)._replace(**changed)


def write(target: Path, *files: list[Row]) -> ExperimentReader:
    writers = [Writer(str(target), "serve") for _ in files]
    for writer, rows in zip(writers, files, strict=True):
        writer.append(rows).result(30)
        writer.close()
    return ExperimentReader(str(target))


def test_steps_of_a_ramp_are_counted_apart(tmp_path: Path, models: Models) -> None:
    rows = traffic(failed=3).shadow() + traffic(LATER_US, failed=10, worse=9).share(5)
    reader = write(tmp_path, rows[::2], rows[1::2])  # Two servers wrote a file each.
    shadow, share = read_evidence(reader, SPANS, models, PAIRED)
    assert (shadow.champion.rows, shadow.champion.errors, shadow.champion.latencies) == (1000, 0, ())
    assert (shadow.challenger.rows, shadow.challenger.errors) == (1000, 30)
    # Of every 100 rows 5 are worse and 5 better; three of each hundred were not answered.
    assert shadow.paired.rows == 970
    assert shadow.paired.squares == pytest.approx(97, abs=10)
    assert abs(float(shadow.paired.total)) <= 10
    assert (share.champion.rows, share.champion.errors) == (950, 0)
    assert (share.challenger.rows, share.challenger.errors) == (50, 9)
    assert share.champion.losses == LossSums(), "a paired comparison reads no labels of later steps"


def test_randomised_steps_have_losses_of_answered_rows(tmp_path: Path, models: Models) -> None:
    reader = write(tmp_path, traffic(LATER_US, failed=10, worse=20, rows=4000).share(25))
    _, share = read_evidence(reader, SPANS, models, RANDOMISED)
    assert share.champion.losses.rows == 3000
    assert share.challenger.losses.rows == 1000 - share.challenger.errors == 900
    rates = [float(one.losses.total / one.losses.rows) for one in (share.champion, share.challenger)]
    assert rates[0] == pytest.approx(0.25, abs=0.02)
    assert rates[1] == pytest.approx(0.40, abs=0.06)


def test_latency_is_counted_per_request_and_above_a_floor(tmp_path: Path, models: Models) -> None:
    slow = traffic(LATER_US, latency_us=400_000).share(50)
    one_request = [
        row._replace(timestamp_us=LATER_US + 50 * SECOND_US) if isinstance(row, Prediction) else row
        for row in traffic(LATER_US + 50 * SECOND_US, rows=300, latency_us=3).share(100)
    ]
    _, share = read_evidence(write(tmp_path, slow + one_request), SPANS, models, PAIRED)
    assert share.challenger.rows == 800
    assert sum(share.challenger.latencies) == 501, "the 300 rows of one request are one request"
    bins = [at for at, count in enumerate(share.challenger.latencies) if count]
    # The fast request counts as 20 ms.
    assert [LATENCY_EDGES[at - 1] < limit <= LATENCY_EDGES[at] for at, limit in zip(bins, (0.02, 0.4), strict=True)]
    assert sum(share.champion.latencies) == 500


def test_entities_with_many_rows_count_once(tmp_path: Path, models: Models) -> None:
    rows = traffic(entities=40).shadow() + traffic(LATER_US, entities=40, failed=5).share(50)
    reader = write(tmp_path, rows[::2], rows[1::2])
    shadow, share = read_evidence(reader, SPANS, models, RANDOMISED)
    assert shadow.paired.rows == 40
    assert share.champion.rows + share.challenger.rows <= 80
    assert share.challenger.losses.rows <= 40
    assert share.challenger.errors <= 40


def test_one_failed_row_of_many_is_not_a_failed_entity(tmp_path: Path, models: Models) -> None:
    """A challenger that fails in fewer rows than is tolerated is not rolled back because its entities return."""
    rows: list[Row] = []
    for at, row in enumerate(traffic(LATER_US, rows=10_000, entities=1000, labelled=False).share(0)):
        assert isinstance(row, Prediction)
        failed = row._replace(assigned_variant="challenger")
        answered = row._replace(variant="challenger", model_digest=CHALLENGER)
        rows.append(failed if at % 400 == 1 else answered if at % 2 else row)
    plan = CanaryPlan(margin=0.02, max_error_rate=0.01, steps=(Step(), Step(share=0.5)))
    found = read_evidence(write(tmp_path, rows), SPANS[1:], models, plan)
    # 25 rows of 5,000 failed, each of another entity.
    assert (found[0].challenger.rows, found[0].challenger.errors) == (500, 2)
    assert decide(found, plan).action != "roll back"


def test_entities_that_return_in_another_file_are_found(tmp_path: Path) -> None:
    """A server that starts again, or has several workers, writes several files."""
    files = [
        [row._replace(entity_id=f"e{at}") for at, row in enumerate(day.share(0)) if isinstance(row, Prediction)]
        for day in (traffic(START_US + at * SECOND_US, rows=20, labelled=False) for at in range(3))
    ]
    reader = write(tmp_path, *(list[Row](rows) for rows in files))
    assert not reader.has_repeated_entities(START_US, START_US + SECOND_US)
    assert reader.has_repeated_entities(START_US, LATER_US)


def test_fallback_counts_as_an_error_of_the_champion(tmp_path: Path, models: Models) -> None:
    rows: list[Row] = []
    for at, row in enumerate(traffic(LATER_US, rows=100, labelled=False).share(0)):
        assert isinstance(row, Prediction)
        rows.append(row._replace(variant="fallback", degraded=True) if at < 7 else row)
    _, share = read_evidence(write(tmp_path, rows), SPANS, models, PAIRED)
    assert (share.champion.rows, share.champion.errors) == (100, 7)
    assert share.challenger.rows == 0


def test_empty_log_has_no_evidence(tmp_path: Path, models: Models) -> None:
    for one in read_evidence(ExperimentReader(str(tmp_path)), SPANS, models, RANDOMISED):
        assert (one.champion.rows, one.challenger.rows, one.paired.rows) == (0, 0, 0)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgresql.run_postgresql() as server:
        yield server.database()


def test_database_and_files_give_the_same_evidence(database: str, tmp_path: Path, models: Models) -> None:
    rows = traffic(failed=3, rows=300).shadow() + traffic(LATER_US, failed=10, entities=150, rows=600).share(25)
    with Writer(database, "serve") as writer:
        writer.append(rows).result(30)
    found = read_evidence(ExperimentReader(database), SPANS, models, RANDOMISED)
    assert found == read_evidence(write(tmp_path, rows), SPANS, models, RANDOMISED)


def test_several_challengers_are_counted_alike_in_database_and_files(database: str, tmp_path: Path) -> None:
    arms = {"2": Version(0.3, failing=0.2), "3": Version(0.2)}
    start = 1_600_000_000_000_000
    rows = experiments.draw_rows(Version(None), arms, 400, 1, start)
    with Writer(database, "serve") as writer:
        writer.append(rows).result(30)
    logs, end = (ExperimentReader(database), write(tmp_path, rows)), start + experiments.HOUR_US
    counts, other = (log.count_variants(start, end, by_entity=False, by_version=True) for log in logs)
    assert counts == other
    assert counts.keys() == {"champion", "challenger:2", "challenger:3"}
    assert sum(one.rows for one in counts.values()) == 400
    assert (counts["challenger:2"].errors > 10, counts["challenger:3"].errors) == (True, 0)
    parts, others = (log.count_answers(start, end, start, experiments.HOUR_US // 4) for log in logs)
    assert parts == others
    assert {part for _, _, part in parts} == {0, 1, 2, 3}
    values, same = (sorted((row.id, value) for row, value in log.read_values("revenue", start, end)) for log in logs)
    assert values == same
    assert len(values) == sum(parts.values())


def test_log_loss_is_finite(models: Models) -> None:
    (row,) = traffic(rows=1, labelled=False).share(0)
    assert isinstance(row, Prediction)
    sure = row._replace(score=0.0)
    found = compute_loss("log", sure, "true", models.contract)
    assert found == pytest.approx(-math.log(MIN_PROBABILITY))
    assert compute_loss("log", sure, "false", models.contract) == pytest.approx(0.0)
    assert compute_loss("zero_one", sure, "true", models.contract) in (0.0, 1.0)
    assert compute_loss("zero_one", sure, '"unknown"', models.contract) is None
