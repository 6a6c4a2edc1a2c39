"""The outbox notifies each sink once when a condition begins and once when it ends, whatever happens in between."""

import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from flywheel_ml.monitoring.alerting.outbox import BATCH, FILE, KEEP, KEEP_OPEN, Changes, Outbox, OutboxError
from flywheel_ml.monitoring.alerting.rules import Alert
from library.helpers.sinks import NOW, make_alert

DIGEST = "d" * 64


def record(
    outbox: Outbox,
    *alerts: Alert,
    sinks: Sequence[str] = ("hook",),
    now: datetime = NOW,
    scope: str = "live",
    digest: str = DIGEST,
    can_end: bool = True,
) -> Changes:
    """Record a run."""
    return outbox.record(alerts, scope, digest, lambda _: can_end, sinks, now)


def send_all(outbox: Outbox, sink: str = "hook") -> list[tuple[str, str]]:
    """Accept everything that is due; returns (rule, status)."""
    sent: list[tuple[str, str]] = []
    while due := outbox.list_due(sink):
        outbox.mark_sent(sink, due)
        sent += [(one.alert.rule, one.status) for one in due]
    return sent


def test_lasting_condition_is_sent_once(outbox: Outbox) -> None:
    assert record(outbox, make_alert()) == (1, 0, 0)
    assert send_all(outbox) == [("drift", "firing")]
    for hours in range(1, 5):
        assert record(outbox, make_alert(evidence=f"{hours}"), now=NOW + timedelta(hours=hours)) == (0, 0, 0)
        assert send_all(outbox) == []
    (lasting,) = outbox.list_open()
    assert (lasting.started_at, lasting.alert.evidence) == (NOW, "4")


def test_ended_condition_is_resolved_once_with_its_times(outbox: Outbox) -> None:
    record(outbox, make_alert())
    send_all(outbox)
    later = NOW + timedelta(hours=2)
    assert record(outbox, now=later) == (0, 1, 0)
    (due,) = outbox.list_due("hook")
    assert (due.status, due.started_at, due.ended_at) == ("resolved", NOW, later)
    assert send_all(outbox) == [("drift", "resolved")]
    record(outbox, now=later)
    assert send_all(outbox) == []
    assert outbox.list_open() == []


def test_sink_that_is_down_for_many_runs_gets_one_firing(outbox: Outbox) -> None:
    for hours in range(6):
        record(outbox, make_alert(), now=NOW + timedelta(hours=hours))
        assert outbox.count_waiting() == {"hook": 1}
    assert send_all(outbox) == [("drift", "firing")]


def test_condition_that_ended_while_the_sink_was_down_is_still_sent(outbox: Outbox) -> None:
    record(outbox, make_alert())
    record(outbox)
    assert send_all(outbox) == [("drift", "firing"), ("drift", "resolved")]


def test_flapping_condition_is_sent_to_a_live_sink_in_order(outbox: Outbox) -> None:
    sent = []
    for _ in range(3):
        record(outbox, make_alert())
        sent += send_all(outbox)
        record(outbox)
        sent += send_all(outbox)
    assert sent == [("drift", "firing"), ("drift", "resolved")] * 3


@pytest.mark.parametrize("is_told", [False, True])
def test_flapping_condition_is_sent_once_to_a_sink_that_is_down(outbox: Outbox, is_told: bool) -> None:
    record(outbox, make_alert())
    if is_told:
        send_all(outbox)
    for _ in range(5):
        record(outbox)
        record(outbox, make_alert())
    assert send_all(outbox) == ([] if is_told else [("drift", "firing")])
    record(outbox)
    assert send_all(outbox) == [("drift", "resolved")]


def test_each_sink_has_its_own_queue(outbox: Outbox) -> None:
    record(outbox, make_alert(), sinks=("a", "b"))
    assert send_all(outbox, "a") == [("drift", "firing")]
    record(outbox, sinks=("a", "b"))
    assert send_all(outbox, "a") == [("drift", "resolved")]
    assert outbox.count_waiting() == {"b": 1}
    assert send_all(outbox, "b") == [("drift", "firing"), ("drift", "resolved")]


def test_new_sink_gets_the_open_conditions(outbox: Outbox) -> None:
    record(outbox, make_alert(), sinks=("a",))
    send_all(outbox, "a")
    record(outbox, make_alert(), sinks=("a", "b"))
    assert send_all(outbox, "a") == []
    assert send_all(outbox, "b") == [("drift", "firing")]


def test_run_that_cannot_judge_ends_nothing(outbox: Outbox) -> None:
    record(outbox, make_alert())
    assert record(outbox, can_end=False).resolved == 0


def test_run_of_another_scope_ends_nothing(outbox: Outbox) -> None:
    record(outbox, make_alert())
    assert record(outbox, scope="scored.parquet").resolved == 0


def test_condition_of_a_scored_file_ends_after_a_day(outbox: Outbox) -> None:
    record(outbox, make_alert("a"), scope="scored.parquet")
    record(outbox, make_alert("b"))
    assert record(outbox, make_alert("b"), now=NOW + KEEP_OPEN).resolved == 0
    assert record(outbox, make_alert("b"), now=NOW + KEEP_OPEN * 2).resolved == 1
    assert [one.alert.rule for one in outbox.list_open()] == ["b"]


def test_new_model_ends_the_conditions_of_the_old_one(outbox: Outbox) -> None:
    record(outbox, make_alert())
    new = make_alert(digest="e" * 64)
    assert record(outbox, new, digest="e" * 64, can_end=False) == (1, 1, 0)


def test_concurrent_runs_record_a_condition_once(outbox: Outbox, tmp_path: Path) -> None:
    def run(_: int) -> int:
        return record(Outbox(tmp_path / "outbox"), make_alert(), make_alert("other")).fired

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(run, range(16))) == 2
    assert len(outbox.list_open()) == 2


def test_full_outbox_drops_what_ended_and_then_rejects(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, max_incidents=3)
    record(outbox, make_alert("a"))
    record(outbox, make_alert("b"))  # "a" has ended, unsent.
    assert record(outbox, make_alert("b"), make_alert("c"), make_alert("d")) == (2, 0, 0)
    assert record(outbox, *map(make_alert, "bcde")) == (0, 0, 1)
    assert [one.alert.rule for one in outbox.list_open()] == ["b", "c", "d"]
    record(outbox, *map(make_alert, "cd"))
    # A condition that did not fit is recorded as soon as there is room.
    assert record(outbox, *map(make_alert, "cde")).fired == 1


def test_more_alerts_than_a_message_holds_are_all_sent(outbox: Outbox) -> None:
    record(outbox, *(make_alert(f"rule {number}") for number in range(BATCH * 2 + 1)))
    assert len(outbox.list_due("hook")) == BATCH
    assert len(send_all(outbox)) == BATCH * 2 + 1


def test_old_incidents_are_dropped(outbox: Outbox) -> None:
    record(outbox, make_alert())
    record(outbox, scope="other", now=NOW + KEEP + timedelta(days=1))
    assert outbox.list_open() == []
    assert outbox.count_waiting() == {}


@pytest.mark.parametrize("content", [b"not a database at all", b"SQLite format 3\0" + b"\xff" * 4096, None])
def test_damaged_outbox_is_moved_aside(tmp_path: Path, content: bytes | None) -> None:
    record(Outbox(tmp_path), *(make_alert(f"rule {number}", "x" * 500) for number in range(50)))
    path = tmp_path / FILE
    damaged = content or path.read_bytes()[:8192] + b"\xff" * 20_000
    path.write_bytes(damaged)
    fresh = Outbox(tmp_path)
    assert fresh.moved_aside is not None
    assert fresh.moved_aside.read_bytes() == damaged
    record(fresh, make_alert())
    assert send_all(Outbox(tmp_path)) == [("drift", "firing")]


def test_empty_outbox_file_is_used(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    assert Outbox(tmp_path).moved_aside is None


def test_outbox_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutboxError, match=r"outbox\.db: the outbox of alerts cannot be written"):
        Outbox(tmp_path / "file")


def test_outbox_that_another_process_removed_fails_in_one_line(outbox: Outbox) -> None:
    with sqlite3.connect(outbox.path) as connection:
        connection.execute("DROP TABLE deliveries")
    with pytest.raises(OutboxError, match="no such table"):
        outbox.list_due("hook")


@pytest.mark.parametrize("marked_late", [False, True])
def test_condition_that_returns_during_its_resolution_is_sent_again(outbox: Outbox, marked_late: bool) -> None:
    record(outbox, make_alert())
    send_all(outbox)
    record(outbox)
    due = outbox.list_due("hook")
    outbox.mark_attempt("hook", due)
    # The sink accepts it, but the process is killed, or slow to record it.
    record(outbox, make_alert())
    if marked_late:
        outbox.mark_sent("hook", due)
    assert send_all(outbox) == [("drift", "firing")]
    record(outbox)
    assert send_all(outbox) == [("drift", "resolved")]
