"""Labels are imported from files completely or not at all, and repeating an import has no effect."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.quality.labelling import ImportedLabels, import_labels
from flywheel_ml.prediction_log import Prediction, Reader, Writer
from flywheel_ml.utils.errors import DataError, ProjectError
from library.helpers import postgresql

CONTRACT = """
name: orders
columns:
  - {name: order, type: integer, role: id}
  - {name: shipped, type: datetime, role: time, time_zone: America/New_York}
  - {name: weight, type: float}
  - {name: late, type: boolean, role: target}
"""
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def build_prediction(at: int, entity: str | None, hours: float = 0) -> Prediction:
    timestamp_us = int((START + timedelta(hours=hours)).timestamp() * 1e6)
    return Prediction(
        f"{at:032d}", timestamp_us, entity, None, "champion", "1", "d" * 64, '{"weight":1.0}', "{}", 0.5, 900, False
    )


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A log with two predictions of order 7, an hour apart, and one of order 8."""
    monkeypatch.chdir(tmp_path)
    Path("contract.yaml").write_text(CONTRACT)
    return fill(str(tmp_path / "log"))


def fill(target: str) -> Settings:
    with Writer(target, "serve") as writer:
        rows = [build_prediction(0, "7"), build_prediction(1, "7", 1), build_prediction(2, "8")]
        writer.append(rows).result(10)
    return Settings(prediction_log=target)


def write(text: str, name: str = "labels.csv") -> Path:
    Path(name).write_text(text)
    return Path(name)


def joined(settings: Settings, horizon_us: int | None = None) -> list[str | None]:
    reader = Reader(settings.prediction_log, label_horizon_us=horizon_us)
    return [row.label for row in sorted(reader.predictions(), key=lambda row: row.prediction.id)]


def test_labels_by_id_are_imported_next_to_a_running_writer(settings: Settings) -> None:
    source = write(f"id,label\n{0:032d},true\n{2:032d},false\n{1:032d},\n")
    with Writer(settings.prediction_log, "serve"):
        assert import_labels(source, settings) == ImportedLabels(2, 2, 1)
    assert joined(settings) == ["true", None, "false"]
    assert import_labels(source, settings) == ImportedLabels(2, 0, 1)


def test_first_label_at_or_after_the_prediction_joins(settings: Settings) -> None:
    source = write(
        "entity,timestamp,label\n7,2026-03-01T11:59:59Z,false\n7,2026-03-01T12:00:00Z,true\n"
        "7,2026-03-01T13:30:00Z,false\n7,2026-03-02T00:00:00Z,true\n9,2026-03-02T00:00:00Z,true\n"
    )
    assert import_labels(source, settings) == ImportedLabels(5, 5, 0)
    assert joined(settings) == ["true", "false", None]
    assert import_labels(source, settings) == ImportedLabels(5, 0, 0)


def test_one_label_joins_two_predictions_within_the_horizon(settings: Settings) -> None:
    import_labels(write("entity,timestamp,label\n7,2026-03-01T13:00:00Z,true\n"), settings)
    assert joined(settings) == ["true", "true", None]
    assert joined(settings, 3_600_000_000) == ["true", "true", None]
    assert joined(settings, 3_599_000_000) == [None, "true", None]


def test_rows_of_the_own_table_are_labels_in_its_time_zone(settings: Settings) -> None:
    table = pl.DataFrame(
        {
            "order": [7, 7, 8],
            "shipped": ["2026-03-01 06:59:59", "2026-03-01 07:00:00", "2026-03-01 07:30:00"],
            "weight": [1.0, 2.0, 3.0],
            "late": ["yes", "no", "yes"],
        }
    )
    table.write_parquet("later.parquet")
    assert import_labels(Path("later.parquet"), settings).new == 3
    assert joined(settings) == ["false", None, "true"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\n{0},true\nnobody,true\n", "no logged prediction has the id 'nobody'; nothing was imported"),
        ("id,label\n{0},true\n{0},false\n", "has different labels for the same id, 1 times"),
        ("id,label\n{0},maybe\n", "column 'label', row 0: 'maybe' must be "),
        ("id\n{0}\n", "has no column 'label' or 'late'"),
        ("id,label\n", "has no rows"),
        ("label\ntrue\n", "has no column 'entity' or 'order'; give id and label, or entity, timestamp and label"),
        ("entity,label\n7,true\n", "has no column 'timestamp' or 'shipped'"),
        ("entity,timestamp,label\n7,2026-03-01,true\n,2026-03-01,true\n", "row 1 has a label and no entity"),
        ("entity,timestamp,label\n7,2999-01-01,true\n", r"2999-01-01 00:00:00 \(UTC\) is in the future"),
        ("entity,timestamp,label\n99,2026-03-01,true\n", "about any of its 1 entities, first '99'; the log takes"),
        ("entity,timestamp,label\n7,2026-03-01,true\n7,2026-03-01,false\n", "same entity and timestamp, 1 times"),
    ],
)
def test_wrong_file_is_rejected_in_one_line(settings: Settings, text: str, message: str) -> None:
    source = write(text.replace("{0}", f"{0:032d}"))
    with pytest.raises(ProjectError, match=message) as found:
        import_labels(source, settings)
    assert "\n" not in str(found.value)
    assert joined(settings) == [None, None, None]
    assert Reader(settings.prediction_log).entity_labels(["7", "99"]) == []


def test_conflict_with_a_stored_label_imports_nothing(settings: Settings) -> None:
    import_labels(write("entity,timestamp,label\n7,2026-03-01T13:00:00Z,true\n"), settings)
    source = write("entity,timestamp,label\n8,2026-03-01T13:00:00Z,true\n7,2026-03-01T13:00:00Z,false\n")
    with pytest.raises(DataError, match="another label or value for '7', and the first is kept; nothing was imported"):
        import_labels(source, settings)
    assert joined(settings) == ["true", "true", None]


def read_values(settings: Settings) -> list[tuple[str, float]]:
    found = Reader(settings.prediction_log).metric_values([f"{at:032d}" for at in range(3)])
    return sorted((one.metric, one.value) for one in found)


@pytest.mark.parametrize("column", ["value", "revenue"])
def test_values_of_a_metric_are_imported_once(settings: Settings, column: str) -> None:
    source = write(f"id,{column}\n{0:032d},12.5\n{1:032d},\n{2:032d},-3\n")
    assert import_labels(source, settings, "revenue") == ImportedLabels(2, 2, 1)
    assert import_labels(source, settings, "revenue") == ImportedLabels(2, 0, 1)
    assert read_values(settings) == [("revenue", -3.0), ("revenue", 12.5)]
    assert joined(settings) == [None, None, None]


@pytest.mark.parametrize(
    ("metric", "text", "message"),
    [
        ("revenue", "id,value\n{0},1\nnobody,1\n", "no logged prediction has the id 'nobody'; nothing was imported"),
        ("revenue", "id,value\n{0},1\n{0},2\n", "has different values for the same id, 1 times"),
        ("revenue", "id,value\n{0},much\n", "column 'value', row 0: 'much'"),
        ("revenue", "id,value\n{0},1e13\n", "row 0: 1e\\+13 is beyond 1e\\+12"),
        ("revenue", "id,amount\n{0},1\n", "has no column 'revenue' or 'value'; give id and value"),
        ("revenue", "id,value\n", "has no rows"),
        ("revenue", "id,value\n,5\n", "row 0 has a value and no id"),
        ("Revenue", "id,value\n{0},1\n", "METRIC: 'Revenue' is not a name of a metric"),
        ("loss", "id,value\n{0},1\n", "METRIC: 'loss' is the model's own loss"),
    ],
)
def test_wrong_file_of_a_metric_is_rejected_in_one_line(
    settings: Settings, metric: str, text: str, message: str
) -> None:
    source = write(text.replace("{0}", f"{0:032d}"))
    with pytest.raises(ProjectError, match=message) as found:
        import_labels(source, settings, metric)
    assert "\n" not in str(found.value)
    assert read_values(settings) == []


KILLED = """
import os, sys
from pathlib import Path
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.quality import labelling
from flywheel_ml.prediction_log.labels.store import LabelStore

labelling.BATCH_ROWS = 100
store, done = LabelStore.store, []

def store_until_killed(self, rows):
    done.append(store(self, rows))
    if len(done) == 3:
        os.kill(os.getpid(), 9)
    return done[-1]

LabelStore.store = store_until_killed
labelling.import_labels(Path(sys.argv[1]), Settings(prediction_log=sys.argv[2]))
"""


def test_killed_import_is_completed_by_the_next(settings: Settings, tmp_path: Path) -> None:
    rows = "".join(f"{7 + at},2026-03-01T13:00:00Z,true\n" for at in range(1000))
    source = write("entity,timestamp,label\n" + rows)
    arguments = [sys.executable, "-c", KILLED, str(source), settings.prediction_log]
    assert subprocess.run(arguments, check=False, env=os.environ).returncode == -signal.SIGKILL
    entities = [str(7 + at) for at in range(1000)]
    assert len(Reader(settings.prediction_log).entity_labels(entities)) == 300
    assert import_labels(source, settings) == ImportedLabels(1000, 700, 0)
    assert len(Reader(settings.prediction_log).entity_labels(entities)) == 1000


def test_postgresql_keeps_the_first_label_of_an_entity(settings: Settings) -> None:
    with postgresql.run_postgresql() as server:
        settings = fill(server.database())
        source = write("entity,timestamp,label\n7,2026-03-01T12:30:00Z,true\n8,2026-03-01T13:00:00Z,false\n")
        assert import_labels(source, settings) == ImportedLabels(2, 2, 0)
        assert import_labels(source, settings) == ImportedLabels(2, 0, 0)
        assert joined(settings) == ["true", None, "false"]
        with pytest.raises(DataError, match="another label or value for '7'"):
            import_labels(write("entity,timestamp,label\n7,2026-03-01T12:30:00Z,false\n"), settings)
        assert joined(settings) == ["true", None, "false"]
        values = write(f"id,value\n{0:032d},12.5\n")
        assert [import_labels(values, settings, "revenue").new for _ in range(2)] == [1, 0]
        with pytest.raises(DataError, match="another label or value for"):
            import_labels(write(f"id,value\n{0:032d},13\n"), settings, "revenue")
        assert read_values(settings) == [("revenue", 12.5)]


def test_label_that_is_not_a_number_counts_as_none(settings: Settings) -> None:
    Path("contract.yaml").write_text(CONTRACT.replace("late, type: boolean", "late, type: float"))
    frame = pl.DataFrame({"id": [f"{at:032d}" for at in range(3)], "label": [float("nan"), float("inf"), 1.5]})
    frame.write_parquet("labels.parquet")
    assert import_labels(Path("labels.parquet"), settings) == ImportedLabels(1, 1, 2)
    assert joined(settings) == [None, None, "1.5"]
