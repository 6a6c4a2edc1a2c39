"""The prediction log survives a database that dies, freezes or is unreachable, with and without a spool."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log import (
    Job,
    LabelConflict,
    Outcome,
    Prediction,
    Reader,
    Row,
    Spool,
    Unavailable,
    Writer,
    new_id,
    now_us,
    stores,
)
from flywheel_ml.prediction_log.spool import MAX_MOVED_ROWS, REJECTED_FILE
from flywheel_ml.prediction_log.stores import PostgresStore
from flywheel_ml.serving.api import feedback
from flywheel_ml.serving.app import open_log
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.observability.metrics import Metrics
from flywheel_ml.utils.errors import ConfigError
from library.helpers.postgresql import PostgreSQL


def made() -> Prediction:
    return Prediction(
        new_id(), now_us(), "k", None, "champion", "1", None, "{}", '{"prediction":true}', 0.25, 900, False
    )


def outcome(of: Prediction, label: str = "true") -> Outcome:
    return Outcome(of.id, now_us(), label)


@pytest.fixture
def url(postgres: PostgreSQL) -> str:
    """The address of an empty database."""
    return postgres.database()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", "serve", "NORMAL", 10_000_000)
    yield opened
    with suppress(Exception):
        opened.close()


class Proxy:
    """A proxy between a client and a database that can drop answers or freeze."""

    def __init__(self, url: str) -> None:
        self._server = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f":{self._server[1]}/", f":{self._listener.getsockname()[1]}/")
        self.lost: bytes | None = None
        """An answer that does not arrive: the connection is cut instead, once."""
        self.frozen = threading.Event()
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.frozen.clear()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._hand_on, args=pair, daemon=True).start()

    def _hand_on(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self.frozen.is_set():
                    time.sleep(0.01)
                if is_answer and self.lost is not None and self.lost in data:
                    self.lost = None
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    made = Proxy(url)
    yield made
    made.close()


def logged(url: str) -> Counter[str]:
    return Counter(row.prediction.id for row in Reader(url).predictions())


def eventually_up(writer: Writer) -> None:
    deadline = time.monotonic() + 15
    while writer.outage is not None or writer.spooled:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["predictions", "labels", "both"])
def test_rows_of_an_unanswered_commit_are_logged_once(url: str, proxy: Proxy, kind: str) -> None:
    first, rows = made(), [made() for _ in range(7)]
    outcomes = [outcome(row) for row in rows]
    asked: list[list[Row]] = [[*rows], [*outcomes]]
    with Writer(proxy.url, "serve") as writer:
        writer.append([first]).result(10)
        if kind == "both":
            proxy.lost = b"COPY 7\0"
            writer.append([*rows, *outcomes]).result(10)
        else:
            if kind == "labels":
                writer.append(asked.pop(0)).result(10)
            proxy.lost = b"COPY 7\0"
            for some in asked:
                writer.append(some).result(10)
        assert proxy.lost is None
        assert writer.outage is None
    assert logged(url) == Counter([first.id, *(row.id for row in rows)])
    assert Reader(url).labels() == dict.fromkeys((row.id for row in rows), "true")


def test_restarted_database_gets_new_connections(postgres: PostgreSQL, url: str) -> None:
    rows = [made(), made()]
    with Writer(url, "serve") as writer:
        writer.append(rows[:1]).result(10)
        postgres.stop()
        postgres.start()
        writer.append(rows[1:]).result(10)
    assert logged(url) == Counter(row.id for row in rows)


def test_frozen_database_becomes_an_outage_after_the_timeout(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores, "TRANSACTION_SECONDS", 0.5)
    rows = [made() for _ in range(3)]
    with Writer(proxy.url, "serve") as writer:
        writer.append(rows[:1]).result(10)
        proxy.frozen.set()
        asked = time.monotonic()
        with pytest.raises(Unavailable, match=r"no answer within 0\.5 s"):
            writer.append(rows[1:2]).result(10)
        assert time.monotonic() - asked < 3
        with pytest.raises(Unavailable):
            writer.append(rows[1:2]).result(0)
        proxy.frozen.clear()
        eventually_up(writer)
        writer.append(rows[2:]).result(10)
    assert logged(url)[rows[2].id] == 1
    assert max(logged(url).values()) == 1
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said[0] == "the prediction log is unavailable: no answer within 0.5 s"
    assert said[-1].startswith("the prediction log is available again, after")


def test_url_without_a_driver_uses_the_installed_one(url: str) -> None:
    row = made()
    for address in (
        url.replace("postgresql+psycopg://", "postgresql://"),
        url.replace("postgresql+psycopg", "postgres"),
    ):
        with Writer(address, "serve") as writer:
            writer.append([row]).result(10)
        assert logged(address) == Counter([row.id])


def test_labels_time_out_on_a_frozen_database(url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "LABEL_SECONDS", 0.5)
    row = made()

    async def tell(labeller: feedback.Labeller) -> None:
        assert await labeller.accept([{"id": row.id, "label": True}]) == 1
        proxy.frozen.set()
        for _ in range(3):
            with pytest.raises(Problem, match="log is unavailable") as refused:
                await labeller.accept([{"id": row.id, "label": True}])
            assert refused.value.status == 503
        proxy.frozen.clear()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with suppress(Problem):
                assert await labeller.accept([{"id": row.id, "label": True}]) == 1
                return
        raise AssertionError("never taken again")

    with Writer(proxy.url, "serve") as writer:
        writer.append([row]).result(10)
        labeller = feedback.Labeller(proxy.url, writer, Metrics())
        asyncio.run(tell(labeller))
        labeller.close()
    assert Reader(url).labels() == {row.id: "true"}


def test_writer_waits_for_a_locked_table(url: str) -> None:
    row = made()
    engine = sa.create_engine(url)
    with Writer(url, "serve") as writer:
        with engine.begin() as connection:
            connection.execute(sa.text("LOCK TABLE predictions"))
            waiting = writer.append([row])
            time.sleep(0.3)
            assert not waiting.done()
        waiting.result(10)
    engine.dispose()
    assert logged(url) == Counter([row.id])


def test_slow_database_gets_parallel_transactions(url: str) -> None:
    rows = [made() for _ in range(3)]
    engine = sa.create_engine(url)
    with Writer(url, "serve") as writer:
        assert writer.max_parallel_commits == 1
        with engine.begin() as connection:
            connection.execute(sa.text("LOCK TABLE predictions"))
            waiting = []
            for row in rows:
                waiting.append(writer.append([row]))
                time.sleep(0.1)
            blocked = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'relation'")
            assert connection.scalar(blocked) == len(rows)
        for one in waiting:
            one.result(10)
        assert writer.max_parallel_commits > 1
    engine.dispose()
    assert logged(url) == Counter(row.id for row in rows)


def test_no_row_waits_for_another_with_parallel_commits(url: str) -> None:
    rows = [made() for _ in range(300)]
    with Writer(url, "serve") as writer:
        for at in range(0, len(rows), 3):
            # Nothing comes after these until they are committed.
            for one in [writer.append([row]) for row in rows[at : at + 3]]:
                one.result(10)
    assert logged(url) == Counter(row.id for row in rows)


def test_bad_row_in_a_database_does_not_fail_others(url: str) -> None:
    good = [made() for _ in range(20)]
    with Writer(url, "serve") as writer:
        waiting = [writer.append([row]) for row in good[:10]]
        refused = writer.append([made()._replace(entity_id="nul\0")])
        waiting += [writer.append([row]) for row in good[10:]]
        assert not isinstance(refused.exception(10), Unavailable | None)
        assert [one.exception(10) for one in waiting] == [None] * 20
    assert logged(url) == Counter(row.id for row in good)


def test_conflicting_label_rejects_its_whole_request(url: str) -> None:
    rows = [made(), made()]
    with Writer(url, "serve") as writer, Writer(url, "serve") as other:
        writer.append([*rows, outcome(rows[0])]).result(10)
        with pytest.raises(LabelConflict) as refused:
            other.append([outcome(rows[1]), outcome(rows[0], "false")]).result(10)
        assert refused.value.ids == [rows[0].id]
        assert Reader(url).labels() == {rows[0].id: "true"}
        # Repeating the same label is not an error.
        other.append([outcome(rows[1]), outcome(rows[0])]).result(10)
    assert Reader(url).labels() == {row.id: "true" for row in rows}


# The spool.


def test_spooled_rows_are_moved_after_the_outage(postgres: PostgreSQL, url: str, spool: Spool) -> None:
    rows = [made() for _ in range(2 * MAX_MOVED_ROWS + 3)]
    job = Job(new_id(), 1, "1", None, "in", "out", 3, 0.5)
    postgres.stop()
    try:
        with Writer(url, "serve", spool=spool) as writer:
            writer.append(rows).result(10)
            writer.append([outcome(rows[0]), job]).result(10)
            assert writer.outage is not None
            assert writer.unavailable_reason is None
            assert writer.spooled == len(rows) + 2
            assert spool.find_known([rows[0].id, "another"]) == {rows[0].id}
            assert spool.labels([rows[0].id]) == {rows[0].id: "true"}
            postgres.start()
            eventually_up(writer)
            assert spool.find_known([rows[0].id]) == set()
            writer.append([outcome(rows[1])]).result(10)
    finally:
        with suppress(Exception):
            postgres.start()
    assert logged(url) == Counter(row.id for row in rows)
    assert Reader(url).labels() == {rows[0].id: "true", rows[1].id: "true"}
    assert Reader(url).jobs() == [job]
    assert {row.prediction for row in Reader(url).predictions()} == set(rows)


def test_kill_while_moving_spooled_rows_causes_no_duplicates(url: str, spool: Spool) -> None:
    database, rows = PostgresStore(url), [made() for _ in range(3)]
    spool.commit([*rows, outcome(rows[0])])

    class Killed(BaseException): ...

    def commit_and_die(some: object) -> None:
        database.commit(some)  # type: ignore[arg-type]
        raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            spool.move(commit_and_die)
    assert spool.rows == 4
    while spool.move(database.commit):
        pass
    database.close()
    assert spool.rows == 0
    assert logged(url) == Counter(row.id for row in rows)
    assert Reader(url).labels() == {rows[0].id: "true"}


def test_rejected_spooled_rows_are_set_aside_and_reported(
    url: str, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    database, row = PostgresStore(url), made()
    database.commit([row, outcome(row)])
    another = made()
    spool.commit([another, outcome(row, "false"), outcome(another)])
    while spool.move(database.commit):
        pass
    database.close()
    assert Reader(url).labels() == {row.id: "true", another.id: "true"}
    (kept,) = [json.loads(line) for line in (spool.folder / REJECTED_FILE).read_text().splitlines()]
    assert (kept["kind"], kept["prediction_id"], kept["label"]) == ("Outcome", row.id, "false")
    (said,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "already have another label" in said.getMessage()


def test_spool_is_bounded_and_keeps_its_rows(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "serve", "NORMAL", 200_000)
    taken, error = 0, None
    while error is None:
        try:
            spool.commit([made() for _ in range(10)])
        except Unavailable as full:
            error = full
        else:
            taken += 10
    assert "full" in str(error)
    assert spool.rows == taken > 0
    assert (tmp_path / "serve-0.db").stat().st_size <= 200_000
    spool.close()
    again = Spool(tmp_path, "serve", "NORMAL", 200_000)
    assert again.rows == taken
    moved: list[Row] = []
    while again.move(moved.extend):
        pass
    assert (len(moved), again.rows) == (taken, 0)
    again.commit([made()])
    again.close()


def test_only_spool_files_of_dead_processes_are_moved(tmp_path: Path) -> None:
    first, second, third = (Spool(tmp_path, "serve", "NORMAL", 10**7) for _ in range(3))
    rows = [made() for _ in range(3)]
    for spool, row in zip((first, second, third), rows, strict=True):
        spool.commit([row])
    second.close()
    moved: list[Row] = []
    first.move_abandoned(moved.extend)
    assert moved == [rows[1]]
    first.close()
    third.close()


def test_log_opens_without_its_database_only_if_allowed(postgres: PostgreSQL, url: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, prediction_log=url, log_spool_folder=tmp_path / "spool")

    postgres.stop()
    try:
        with pytest.raises(ConfigError, match="cannot be used"):
            open_log(settings, Metrics().log.backlog)
        for mode in ("spool", "unlogged"):
            open_log(settings.model_copy(update={"log_failure_policy": mode}), Metrics().log.backlog).close()
    finally:
        postgres.start()


def test_spool_for_a_folder_is_rejected(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, prediction_log=str(tmp_path / "log"), log_failure_policy="spool")
    with pytest.raises(ConfigError, match="ML_LOG_FAILURE_POLICY: 'spool' needs a database"):
        open_log(settings, Metrics().log.backlog)
