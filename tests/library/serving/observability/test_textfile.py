"""Metrics of monitoring are added to the server's own; no file can break `/metrics`."""

import os
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flywheel_ml.core.serving_folder import MONITORING_METRICS
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.serving.observability.textfile import FAULT, MAX_BYTES, MAX_SERIES, TextfileReader

GOOD = '# HELP monitoring_rows Rows.\n# TYPE monitoring_rows gauge\nmonitoring_rows{a="b\\"c"} 3\n'


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    found = Metrics()
    found.textfiles = TextfileReader(tmp_path)
    return found


def scrape(metrics: Metrics) -> dict[str, list[float]]:
    """Values of the series by name; fails if the exposition is invalid."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(generate_latest(metrics).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    assert "http_requests_in_flight" in found
    return found


def test_file_is_added_and_followed(metrics: Metrics, tmp_path: Path) -> None:
    assert FAULT not in scrape(metrics)
    path = tmp_path / MONITORING_METRICS
    path.write_text(GOOD)
    found = scrape(metrics)
    assert (found["monitoring_rows"], found[FAULT]) == ([3], [0])
    path.write_text(GOOD.replace(" 3", " 44"))
    assert scrape(metrics)["monitoring_rows"] == [44]
    path.unlink()
    assert "monitoring_rows" not in scrape(metrics)


@pytest.mark.parametrize(
    "content",
    [
        GOOD.removesuffix("\n"),
        GOOD[:-12],
        GOOD + GOOD,
        GOOD + 'monitoring_rows{a="b\\"c"} 4\n',
        GOOD + "http_requests_in_flight 5\n",
        GOOD + "monitoring_file_error 0\n",
        GOOD + "monitoring_x{ 5\n",
        GOOD + "monitoring_x five\n",
        GOOD + "monitoring_x NaN\n",
        GOOD + '{"monitoring x", "é"="y"} 5\n',
        GOOD + "\x00\x01\n",
        '# TYPE monitoring_h histogram\nmonitoring_h_bucket{le="1"} 5\n',
        "".join(f'monitoring_many{{n="{n}"}} 1\n' for n in range(MAX_SERIES + 1)),
        f"# {'x' * MAX_BYTES}\n",
    ],
)
def test_malformed_file_is_reported_and_left_out(metrics: Metrics, tmp_path: Path, content: str) -> None:
    (tmp_path / MONITORING_METRICS).write_text(content)
    found = scrape(metrics)
    assert found[FAULT] == [1]
    assert [name for name in found if name.startswith("monitoring_")] == [FAULT]


def test_file_that_is_not_text_is_left_out(metrics: Metrics, tmp_path: Path) -> None:
    (tmp_path / MONITORING_METRICS).write_bytes(os.urandom(5000) + b"\n")
    assert scrape(metrics)[FAULT] == [1]


def test_pipe_or_folder_in_its_place_does_not_hold_up_a_scrape(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / MONITORING_METRICS
    os.mkfifo(path)
    assert scrape(metrics)[FAULT] == [1]
    path.unlink()
    path.mkdir()
    assert scrape(metrics)[FAULT] == [1]


def test_huge_file_is_read_up_to_a_limit(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / MONITORING_METRICS
    with path.open("wb") as stream:
        stream.truncate(50_000_000_000)  # A sparse file.
    assert scrape(metrics)[FAULT] == [1]
