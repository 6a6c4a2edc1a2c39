"""The log file has every notification once, one line each."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flywheel_ml.monitoring.alerting import log_file
from library.helpers.sinks import make_alert, make_notification


def read(path: Path) -> list[str]:
    return [json.loads(line)["rule"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_notifications_are_appended_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "alerts.jsonl"
    log_file.append(path, [make_notification(make_alert("a", "é\n\u2028")), make_notification(make_alert("b"))])
    log_file.append(path, [make_notification(make_alert("a"), ended=True)])
    assert [json.loads(line)["rule"] for line in path.read_text(encoding="utf-8").split("\n") if line] == [
        "a",
        "b",
        "a",
    ]


def test_notification_that_was_appended_before_a_kill_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    log_file.append(path, [make_notification(make_alert("a"))])
    log_file.append(path, [make_notification(make_alert("a")), make_notification(make_alert("b"))])
    assert read(path) == ["a", "b"]


def test_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_text('{"rule":"cut')
    log_file.append(path, [make_notification(make_alert("a"))])
    assert json.loads(path.read_text().splitlines()[1])["rule"] == "a"


def test_lines_of_concurrent_runs_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    notifications = [make_notification(make_alert(f"rule {number}", "x" * 1500)) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: log_file.append(path, [one]), notifications))
    assert sorted(read(path)) == sorted(f"rule {number}" for number in range(40))
