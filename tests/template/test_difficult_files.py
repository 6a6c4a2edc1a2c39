"""Small files that are easily misread: each is adopted with its meaning, or refused in one line.

The files are synthetic and kept in `inputs/`. Tests that train on them run in `make test-full`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from checkout import REPOSITORY
from conftest import Bake
from processes import free_port, make, run, running

pytestmark = pytest.mark.slow

INPUTS = REPOSITORY / "tests" / "template" / "inputs"
FLOAT, INTEGER, DATETIME = ({"type": name} for name in ("float", "integer", "datetime"))
MISSING = {"nullable": True}
YES_NO = {"categories": ["no", "yes"]}

# Per file: the target, and what the contract must say of some columns.
ADOPTED: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "accounting.csv": (
        "repaid",
        dict.fromkeys(("balance", "balance_minus", "balance_sap"), FLOAT),
    ),
    "epoch_ns.csv": ("late", {"timestamp": DATETIME | {"role": "time"}, "event_time": DATETIME}),
    "gemeinden.csv": ("ausbau", {"einwohner": INTEGER | {"range": [0, 148000]}}),
    "hive2": ("y", {"extra": FLOAT | MISSING, "year": INTEGER, "y": YES_NO}),
    "inf.csv": ("late", {"ratio": FLOAT | MISSING}),
    "many_spaced.csv": ("sold", {"maker": {"type": "string"}, "sold": YES_NO}),
    "mixed_dates.csv": ("late", {"date": DATETIME | {"role": "time"}}),
    "nfd.csv": ("décidé", {"catégorie": {"categories": ["café", "résumé", "thé"]}}),
    "pandas_na.csv": ("late", {"visits": INTEGER | MISSING, "seen_on": DATETIME | MISSING}),
    "pg_timestamptz.csv": ("late", {"created_at": DATETIME | {"role": "time"}}),
    "quoted_all.csv": ("churn", {"plan": MISSING | {"categories": ["basic", "pro"]}}),
    "r_na_target.csv": ("outcome", {"outcome": YES_NO}),
    "sep_line.csv": ("label", {"age": INTEGER, "income": INTEGER, "city": {"type": "string"}}),
    "unnamed_gaps.csv": ("grade", {"column_1": {"role": "ignored"}}),
    "zero_date.csv": ("late", {"shipped_on": DATETIME | MISSING, "created_at": DATETIME}),
}


@pytest.fixture(scope="module")
def installed(bake: Bake) -> Path:
    """The default project with its environment."""
    project = bake()
    make(project, "install")
    return project


@pytest.fixture
def project(installed: Path) -> Path:
    """The project as it was baked: what an earlier test adopted and trained is gone."""
    run(installed, "git", "checkout", "--quiet", ".")
    run(installed, "git", "clean", "-qfdx", "--exclude", ".venv", "--exclude", "uv.lock")
    return installed


def adopt(project: Path, file: str, target: str) -> dict[str, dict[str, Any]]:
    """Adopt a file of tests/template/inputs; returns the columns of the contract by name."""
    make(project, "adopt", f"DATA={INPUTS / file}", f"TARGET={target}", "ARGS=--yes")
    contract = yaml.safe_load((project / "contract.yaml").read_text(encoding="utf-8"))
    return {column["name"]: column for column in contract["columns"]}


def train(project: Path, file: str, target: str) -> dict[str, float]:
    """Adopt a file and train on it; returns the measures on the test rows."""
    adopt(project, file, target)
    make(project, "run")
    manifest = json.loads((project / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    measures: dict[str, float] = manifest["metrics"]["test"]
    return measures


def adopted_rows(project: Path) -> dict[str, list[Any]]:
    return read_parquet(project, next((project / "data" / "raw").glob("*.parquet")))


def score(project: Path, file: Path) -> dict[str, list[Any]]:
    """Score a file with the champion; returns the columns of the answers."""
    make(project, "score", f"INPUT={file}", "OUTPUT=build/scored.parquet")
    return read_parquet(project, project / "build" / "scored.parquet")


def read_parquet(project: Path, path: Path) -> dict[str, list[Any]]:
    code = (
        "import json, sys, polars; frame = polars.read_parquet(sys.argv[1]);"
        "print(json.dumps(frame.to_dict(as_series=False), default=str))"
    )
    found: dict[str, list[Any]] = json.loads(
        run(project, str(project / ".venv" / "bin" / "python"), "-c", code, str(path))
    )
    return found


def share_right(rows: dict[str, list[Any]], target: str) -> float:
    pairs = list(zip(rows[target], rows["prediction"], strict=True))
    right = [truth == answer for truth, answer in pairs]
    return right.count(True) / len(right)


@pytest.mark.parametrize("file", ADOPTED)
def test_adoption_reads_columns_as_meant(file: str, project: Path) -> None:
    target, wanted = ADOPTED[file]
    columns = adopt(project, file, target)
    assert columns[target]["role"] == "target"
    for name, facts in wanted.items():
        said = {key: columns[name].get(key) for key in facts}
        assert said == facts, name


def test_adoption_reads_thousands_by_the_whole_table(project: Path) -> None:
    adopt(project, "gemeinden.csv", "ausbau")
    assert adopted_rows(project)["einwohner"][:3] == [4866, 455, 8969]


def test_adoption_reads_negatives_of_accounting(project: Path) -> None:
    adopt(project, "accounting.csv", "repaid")
    rows = adopted_rows(project)
    assert rows["balance"][:2] == [-2083.49, -46.4]
    assert rows["balance"] == rows["balance_minus"] == rows["balance_sap"]


def test_adoption_leaves_out_rows_with_a_missing_target(project: Path) -> None:
    adopt(project, "r_na_target.csv", "outcome")
    outcomes = adopted_rows(project)["outcome"]
    assert outcomes.count(None) == 124
    assert set(outcomes) == {"yes", "no", None}


def test_adoption_names_the_line_of_a_ragged_row(project: Path) -> None:
    command = ["make", "adopt", f"DATA={INPUTS / 'ragged_long.csv'}", "TARGET=y", "ARGS=--yes"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "line 152: 5 cells where the header has 4" in said


@pytest.mark.full
def test_equal_inputs_stay_on_one_side_of_the_split(project: Path) -> None:
    """A random split gives 0.72; a split by a key that includes the target gives 0.09."""
    assert train(project, "admissions.csv", "admitted")["roc_auc"] > 0.66


@pytest.mark.full
def test_spaced_cells_score_as_they_trained_and_raise_no_drift(project: Path) -> None:
    accuracy = train(project, "many_spaced.csv", "sold")["accuracy"]
    assert accuracy > 0.8
    again = score(project, INPUTS / "many_spaced.csv")
    parquet = score(project, next((project / "data" / "raw").glob("*.parquet")))
    assert again["score"] == parquet["score"]
    assert share_right(again, "sold") > 0.8
    score(project, INPUTS / "many_fresh.csv")
    assert "ok: 600 rows" in make(project, "monitor", "SCORED=build/scored.parquet")


@pytest.mark.full
def test_quoted_empty_cells_score_as_they_trained(project: Path) -> None:
    assert train(project, "quoted_all.csv", "churn")["accuracy"] > 0.88
    again = score(project, INPUTS / "quoted_all.csv")
    parquet = score(project, next((project / "data" / "raw").glob("*.parquet")))
    assert again["score"] == parquet["score"]
    assert share_right(again, "churn") > 0.9


@pytest.mark.full
def test_row_counter_has_no_part_in_the_model(project: Path) -> None:
    """With it the test accuracy is 1.000, and that of the next rows 0.340."""
    accuracy = train(project, "unnamed_gaps.csv", "grade")["accuracy"]
    fresh = share_right(score(project, INPUTS / "unnamed_next.csv"), "grade")
    assert 0.4 < accuracy < 0.8
    assert abs(accuracy - fresh) < 0.15


@pytest.mark.full
def test_written_local_hour_counts_in_training_and_requests(project: Path) -> None:
    """The true rule, 17 to 20 h local time, has a ROC AUC of 0.938 on the test rows."""
    assert train(project, "dst.csv", "peak")["roc_auc"] > 0.87
    port = free_port()
    with running(project, port):
        shares = {}
        for moment in ("2023-11-06T20:30:00+01:00", "2023-11-06T19:30:00Z", "2023-11-06T12:30:00"):
            instance = {"started": moment, "kw": 0.1}
            body = {"instances": [instance]}
            answer = httpx.post(f"http://127.0.0.1:{port}/predict", json=body, timeout=30)
            shares[moment] = answer.json()["predictions"][0]["probabilities"]["yes"]
    evening, same, noon = shares.values()
    assert evening == same
    assert evening > 0.8
    assert noon < 0.1


@pytest.mark.full
def test_regression_far_from_zero_passes_its_gates(project: Path) -> None:
    assert train(project, "pressure.csv", "pressure_pa")["r2"] > 0.6


@pytest.mark.full
def test_late_class_is_reported_with_a_split_that_trains(project: Path) -> None:
    columns = adopt(project, "late_class.csv", "state")
    assert columns["state"]["categories"] == ["hi", "lo", "new"]
    make(project, "run")


@pytest.mark.full
def test_pure_noise_is_refused_as_no_signal(project: Path) -> None:
    adopt(project, "noise40.csv", "response")
    command = ["make", "run"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no signal: nothing predicts 'response'" in done.stdout + done.stderr
