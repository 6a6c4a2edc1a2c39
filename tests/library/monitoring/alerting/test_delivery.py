"""Delivery retries, keeps what was not accepted, and never lets one sink hold up another."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from flywheel_ml.core.settings import Settings
from flywheel_ml.monitoring.alerting.configured import build_sinks
from flywheel_ml.monitoring.alerting.delivery import AlertError, Delivery, RetryPolicy, deliver, raise_faults, send_test
from flywheel_ml.monitoring.alerting.notification import Notification
from flywheel_ml.monitoring.alerting.outbox import BATCH, Outbox
from flywheel_ml.monitoring.alerting.rules import Alert
from flywheel_ml.monitoring.alerting.sinks import SendFunction, Sink, SinkError
from flywheel_ml.utils.errors import ConfigError
from library.helpers.servers import wait_for
from library.helpers.sinks import NOW, Hook, make_alert, make_notification

FAST = RetryPolicy(timeout=1.0, retries=2, first_delay=0.01)


def webhook(url: str, tmp_path: Path, timeout: float = 1.0) -> Sink:
    """The sink of an old project, which only has ML_ALERT_WEBHOOK."""
    settings = Settings(_env_file=None, alert_webhook=SecretStr(url), alert_timeout_seconds=timeout)
    return next(sink for sink in build_sinks(settings, tmp_path / "alerts.jsonl") if sink.name == "webhook")


def run(outbox: Outbox, sinks: Sequence[Sink], *alerts: Alert, policy: RetryPolicy = FAST) -> list[Delivery]:
    """Record a run that found these alerts, and deliver."""
    outbox.record(alerts, "live", "d" * 64, lambda _: True, [sink.name for sink in sinks], NOW)
    return deliver(outbox, sinks, policy)


def test_condition_is_sent_once_and_resolved_once(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    sinks = [webhook(hook.url, tmp_path)]
    for alerts in ([make_alert()], [make_alert()], [], []):
        assert not run(outbox, sinks, *alerts)[0].fault
    assert hook.list_statuses() == [("drift", "firing"), ("drift", "resolved")]


def test_transient_error_is_retried_with_growing_delays(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    hook.answers = [500, 429]
    start = time.monotonic()
    (done,) = run(outbox, [webhook(hook.url, tmp_path)], make_alert(), policy=FAST._replace(first_delay=0.1))
    assert (done.accepted, done.fault) == (1, "")
    assert len(hook.requests) == 3
    assert time.monotonic() - start > 0.15


def test_retry_after_is_obeyed(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    hook.answers, hook.headers = [429], {"Retry-After": "1"}
    start = time.monotonic()
    assert run(outbox, [webhook(hook.url, tmp_path)], make_alert())[0].accepted == 1
    assert time.monotonic() - start > 1


def test_long_retry_after_is_left_to_the_next_run(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    hook.answers, hook.headers = [503], {"Retry-After": "3600"}
    sinks = [webhook(hook.url, tmp_path)]
    assert run(outbox, sinks, make_alert())[0].fault == "answered 503"
    assert len(hook.requests) == 1
    assert run(outbox, sinks, make_alert())[0].accepted == 1


def test_permanent_error_is_not_retried_and_kept(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    hook.status = 404
    sinks = [webhook(hook.url, tmp_path)]
    done = run(outbox, sinks, make_alert())
    assert len(hook.requests) == 1
    with pytest.raises(AlertError) as error:
        raise_faults(done, outbox.count_waiting())
    assert str(error.value).startswith("1 alert was not delivered: webhook (ML_ALERT_WEBHOOK) answered 404; they are")
    assert "T0KEN" not in str(error.value)


def test_sink_that_is_down_for_many_runs_gets_each_alert_once(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    hook.status = 500
    sinks = [webhook(hook.url, tmp_path)]
    for _ in range(4):
        assert run(outbox, sinks, make_alert(), make_alert("other"))[0].fault == "answered 500"
    hook.status = 200
    assert run(outbox, sinks, make_alert(), make_alert("other"))[0].accepted == 2
    assert hook.list_statuses() == [("drift", "firing"), ("other", "firing")]


def test_unreadable_alert_does_not_hold_back_the_others(outbox: Outbox, tmp_path: Path) -> None:
    sent: list[str] = []

    def send(notifications: Sequence[Notification]) -> None:
        if any(one.alert.rule == "poison" for one in notifications):
            raise SinkError("answered 400", permanent=True, unreadable=True)
        sent.extend(one.alert.rule for one in notifications)

    sink = Sink("picky", "here", send)
    assert run(outbox, [sink], *map(make_alert, ("a", "poison", "b")))[0].fault == "answered 400"
    assert sent == ["a", "b"]
    assert outbox.count_waiting() == {"picky": 1}


def test_dead_sink_does_not_delay_the_others(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    arrived: list[float] = []
    start = time.monotonic()

    def send(notifications: Sequence[Notification]) -> None:
        arrived.append(time.monotonic() - start)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/T0KEN", tmp_path, timeout=0.5)
        done = run(outbox, [dead, Sink("fast", "here", send)], make_alert(), policy=FAST._replace(timeout=0.5))
    assert arrived[0] < 0.5 <= time.monotonic() - start
    assert [one.fault for one in done] == ["did not answer within 0.5 s", ""]
    assert outbox.count_waiting() == {"webhook": 1}


def test_function_that_never_returns_is_left_behind(outbox: Outbox) -> None:
    ended = threading.Event()
    sink = Sink("stuck", "alerts.py: SINKS", lambda _: ended.wait(60))
    start = time.monotonic()
    assert (
        run(outbox, [sink], make_alert(), policy=FAST._replace(timeout=0.1))[0].fault == "did not answer within 0.1 s"
    )
    assert time.monotonic() - start < 3
    ended.set()


def test_error_of_a_custom_sink_is_named_by_its_place(outbox: Outbox) -> None:
    def page(notifications: Sequence[Notification]) -> None:
        raise ConnectionError("https://pager.example.org/T0KEN refused")

    (done,) = run(outbox, [Sink("page", "alerts.py: SINKS", page)], make_alert())
    assert done.fault.startswith("raised ConnectionError (test_delivery.py, line ")
    assert "T0KEN" not in done.fault


def test_concurrent_deliveries_send_each_alert_once(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    hook.delay = 0.2
    sinks = [webhook(hook.url, tmp_path)]
    alerts = [make_alert(f"rule {number}") for number in range(25)]
    threads = [threading.Thread(target=partial(run, Outbox(outbox.path.parent), sinks, *alerts)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(hook.list_statuses()) == sorted((f"rule {number}", "firing") for number in range(25))


RUN = """
import sys
from pathlib import Path
from flywheel_ml.monitoring.alerting.delivery import deliver
from library.helpers.sinks import make_alert
from library.monitoring.alerting.test_delivery import FAST, run, webhook
from flywheel_ml.monitoring.alerting.outbox import Outbox
folder = Path(sys.argv[1])
run(Outbox(folder / "outbox"), [webhook(sys.argv[2], folder, 30.0)], make_alert(), policy=FAST._replace(timeout=30.0))
"""


def test_process_killed_during_delivery_loses_nothing(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    hook.delay, hook.status = 30.0, 500
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path), hook.url], env=environment)
    try:
        wait_for(lambda: bool(hook.requests), 30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    hook.delay, hook.status = 0.0, 200
    # The next delivery finds the alert, and the lock of the killed process is gone.
    assert deliver(outbox, [webhook(hook.url, tmp_path)], FAST)[0].accepted == 1
    assert hook.list_statuses() == [("drift", "firing")]


def test_sink_that_forgets_is_reminded_of_open_conditions(outbox: Outbox) -> None:
    seen: list[tuple[str, ...]] = []
    sink = Sink("am", "here", lambda notifications: seen.append(tuple(n.status for n in notifications)), True)
    run(outbox, [sink], make_alert())
    run(outbox, [sink], make_alert())
    run(outbox, [sink])
    run(outbox, [sink])
    assert seen == [("firing",), ("firing",), ("resolved",)]


def test_test_alert_reaches_every_sink_past_the_outbox(outbox: Outbox, hook: Hook, tmp_path: Path) -> None:
    broken = Sink("broken", "here", lambda _: 1 / 0)
    done = send_test([webhook(hook.url, tmp_path), broken], make_notification(), FAST)
    assert [bool(one.fault) for one in done] == [False, True]
    assert len(hook.bodies) == 1
    assert outbox.count_waiting() == {}


def test_full_outbox_is_an_error() -> None:
    with pytest.raises(AlertError, match="2 alerts did not fit into the outbox"):
        raise_faults([], {}, rejected=2)


def test_sinks_are_configured_by_settings_and_project(tmp_path: Path) -> None:
    def page(notifications: Sequence[Notification]) -> None: ...

    settings = Settings(
        _env_file=None,
        alert_webhook=SecretStr("https://h/a"),
        alert_slack_webhook=SecretStr("https://h/b"),
        alert_teams_webhook=SecretStr("https://h/c"),
        alert_alertmanager=SecretStr("http://h:9093/"),
        alert_email_to="a@example.org",
        alert_smtp_host="mail",
    )
    names = [sink.name for sink in build_sinks(settings, tmp_path / "log", [page])]
    assert names == ["log", "webhook", "slack", "teams", "alertmanager", "email", "page"]
    assert [sink.name for sink in build_sinks(Settings(_env_file=None), tmp_path / "log")] == ["log"]


@pytest.mark.parametrize("name", ["log", "webhook"])
def test_custom_sink_needs_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    def function(_: Sequence[Notification]) -> None: ...

    function.__name__ = name
    settings = Settings(_env_file=None, alert_webhook=SecretStr("https://h/a"))
    with pytest.raises(ConfigError, match=f"there is a sink '{name}' already"):
        build_sinks(settings, tmp_path / "log", [function])


def test_custom_sink_must_be_a_function(tmp_path: Path) -> None:
    broken: list[SendFunction] = ["page"]  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="'page' is not a function"):
        build_sinks(Settings(_env_file=None), tmp_path / "log", broken)


@pytest.mark.parametrize("field", ["alert_webhook", "alert_slack_webhook", "alert_teams_webhook", "alert_alertmanager"])
def test_invalid_address_names_its_setting(tmp_path: Path, field: str) -> None:
    settings = Settings(_env_file=None).model_copy(update={field: SecretStr("T0KEN")})
    with pytest.raises(ConfigError, match=f"^ML_{field.upper()}: ") as error:
        build_sinks(settings, tmp_path / "log")
    assert "T0KEN" not in str(error.value)


@pytest.mark.parametrize("unreadable", [1, BATCH, 2 * BATCH])
def test_unreadable_notifications_do_not_hold_back_the_others(outbox: Outbox, unreadable: int) -> None:
    accepted: list[str] = []

    def send(notifications: Sequence[Notification]) -> None:
        if any(int(one.alert.rule) < unreadable for one in notifications):
            raise SinkError("answered 400", permanent=True, unreadable=True)
        accepted.extend(one.alert.rule for one in notifications)

    count = 2 * BATCH + 5
    (done,) = run(outbox, [Sink("hook", "", send)], *(make_alert(rule=str(at)) for at in range(count)))
    assert sorted(map(int, accepted)) == list(range(unreadable, count))
    assert (done.accepted, done.fault) == (count - unreadable, "answered 400")
