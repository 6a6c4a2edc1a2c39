"""The outbox: open conditions, and what each sink still has to be notified of, in a SQLite file.

A condition that begins is an incident. Each sink has one delivery per incident: 0 not notified, 1 notified that it
fires, 2 notified that it ended, 3 perhaps notified that it ended. Sending brings each delivery up to its incident's
state. So a condition that lasts is sent once, a sink that is down for N runs is sent each condition once when it is
back, and a killed process loses nothing.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import filelock

from flywheel_ml.monitoring.alerting.notification import Notification
from flywheel_ml.monitoring.alerting.rules import Alert
from flywheel_ml.utils.errors import ProjectError

FILE = "outbox.db"
LIVE = "live"
"""Scope of the runs that evaluate what the server predicts now; they also publish metrics."""
KEEP_OPEN = timedelta(days=1)
"""A condition of another scope, such as a scored file, ends this long after it was evaluated last."""
MAX_INCIDENTS = 1000
KEEP = timedelta(days=30)
"""An incident that ended, or was not evaluated, this long ago is dropped even if a sink never accepted it."""
BATCH = 20
"""Maximum number of notifications in a message."""
BUSY_SECONDS = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS incidents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint TEXT NOT NULL,
    scope TEXT NOT NULL,
    started_at TEXT NOT NULL,
    seen_at TEXT NOT NULL,
    ended_at TEXT,
    alert TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS open_incidents ON incidents (fingerprint) WHERE ended_at IS NULL;
CREATE TABLE IF NOT EXISTS deliveries (
    incident INTEGER NOT NULL REFERENCES incidents (id) ON DELETE CASCADE,
    sink TEXT NOT NULL,
    state INTEGER NOT NULL,
    PRIMARY KEY (sink, incident)
) STRICT, WITHOUT ROWID;
"""
DUE = "(d.state = 0 OR (d.state IN (1, 3) AND i.ended_at IS NOT NULL))"


class OutboxError(ProjectError):
    """The outbox cannot be read or written."""


class OpenAlert(NamedTuple):
    """A condition that lasts, and the sinks that have not been notified of it yet."""

    alert: Alert
    started_at: datetime
    waiting: tuple[str, ...]


class Changes(NamedTuple):
    """Number of conditions that began and ended in a run, and of those that a full outbox could not record."""

    fired: int
    resolved: int
    rejected: int


class Outbox:
    """The outbox in a folder, created on first use; several processes may use it at once.

    Attributes:
        moved_aside: path to which a damaged outbox was moved, if it was.
    """

    def __init__(self, folder: Path, max_incidents: int = MAX_INCIDENTS) -> None:
        self.path = folder / FILE
        self.moved_aside: Path | None = None
        self._max_incidents = max_incidents
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / f".{FILE}.lock", timeout=BUSY_SECONDS):
                self._create()
        except (OSError, sqlite3.OperationalError) as error:
            raise OutboxError(f"{self.path}: the outbox of alerts cannot be written: {error}") from None

    def record(
        self,
        alerts: Sequence[Alert],
        scope: str,
        digest: str,
        can_end: Callable[[str], bool],
        sinks: Sequence[str],
        now: datetime,
    ) -> Changes:
        """Record the alerts of a run, and the end of the conditions that it no longer found, in one transaction.

        Args:
            alerts: what the run found.
            scope: what was evaluated, `LIVE` or any other text; only conditions of the same scope can end.
            digest: model of the run; conditions of another model in this scope end with it.
            can_end: whether the run could have found the condition of a rule.
            sinks: names of the sinks to notify.
            now: time of the run, aware.
        """
        at, by_fingerprint = now.astimezone(UTC).isoformat(), {alert.fingerprint: alert for alert in alerts}
        fired = rejected = 0
        with self._transaction() as connection:
            self._drop_old(connection, now)
            resolved = self._end_old(connection, now)
            known = connection.execute(
                "SELECT id, fingerprint, scope, alert FROM incidents WHERE ended_at IS NULL"
            ).fetchall()
            open_alerts = {row[1] for row in known}
            for number, fingerprint, its_scope, text in known:
                first = Alert.model_validate_json(text, strict=False)
                if found := by_fingerprint.get(fingerprint):
                    # What identifies the alert for a sink, such as its severity, stays as it was when it began.
                    latest = first.model_copy(update={"at": found.at, "evidence": found.evidence, "model": found.model})
                    values = (at, latest.to_json(), number)
                    connection.execute("UPDATE incidents SET seen_at = ?, alert = ? WHERE id = ?", values)
                elif its_scope == scope and (first.digest != digest or can_end(first.rule)):
                    connection.execute("UPDATE incidents SET ended_at = ? WHERE id = ?", (at, number))
                    resolved += 1
            for fingerprint, alert in by_fingerprint.items():
                if fingerprint not in open_alerts:
                    if self._make_room(connection):
                        self._insert(connection, fingerprint, scope, at, alert)
                        fired += 1
                    else:
                        rejected += 1
            self._add_deliveries(connection, sinks)
        return Changes(fired, resolved, rejected)

    def list_due(self, sink: str, skipped: Collection[int] = ()) -> list[Notification]:
        """Return the next notifications for a sink, at most `BATCH`, oldest first, without some incidents."""
        others = f"i.id NOT IN ({', '.join(map(str, skipped))})" if skipped else "1"
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT i.id, i.started_at, i.ended_at, i.alert, d.state FROM deliveries d"  # noqa: S608
                " JOIN incidents i ON i.id = d.incident"
                f" WHERE d.sink = ? AND {DUE} AND {others} ORDER BY d.state DESC, i.id LIMIT ?",
                (sink, BATCH),
            ).fetchall()
        # A condition that began and ended while the sink was down is sent as firing first, then as resolved.
        return [_build(number, started, ended if state else None, text) for number, started, ended, text, state in rows]

    def list_firing(self, sink: str) -> list[Notification]:
        """Return the open conditions that a sink was notified of, for one that must be reminded of them."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT i.id, i.started_at, i.alert FROM deliveries d JOIN incidents i ON i.id = d.incident"
                " WHERE d.sink = ? AND d.state = 1 AND i.ended_at IS NULL ORDER BY i.id",
                (sink,),
            ).fetchall()
        return [_build(number, started, None, text) for number, started, text in rows]

    def mark_attempt(self, sink: str, notifications: Sequence[Notification]) -> None:
        """Record that a sink may learn the end of conditions; if one begins again meanwhile, it is sent again."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE deliveries SET state = 3 WHERE sink = ? AND incident = ? AND state = 1",
                [(sink, int(one.incident)) for one in notifications if one.status == "resolved"],
            )

    def mark_sent(self, sink: str, notifications: Sequence[Notification]) -> None:
        """Record that a sink accepted notifications."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE deliveries SET state = ? WHERE sink = ? AND incident = ? AND state <> 2",
                [(2 if one.status == "resolved" else 1, sink, int(one.incident)) for one in notifications],
            )

    def count_waiting(self) -> dict[str, int]:
        """Count the incidents of which a sink must still be notified, by sink; sinks without any are absent."""
        with self._transaction() as connection:
            return dict(
                connection.execute(
                    "SELECT d.sink, COUNT(*) FROM deliveries d JOIN incidents i ON i.id = d.incident"  # noqa: S608
                    f" WHERE {DUE} GROUP BY d.sink ORDER BY d.sink"
                ).fetchall()
            )

    def list_open(self) -> list[OpenAlert]:
        """Return the conditions that last, oldest first."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT id, started_at, alert FROM incidents WHERE ended_at IS NULL ORDER BY id"
            ).fetchall()
            waiting = connection.execute(
                "SELECT incident, sink FROM deliveries WHERE state = 0 ORDER BY sink"
            ).fetchall()
        return [
            OpenAlert(
                Alert.model_validate_json(text, strict=False),
                datetime.fromisoformat(started),
                tuple(sink for incident, sink in waiting if incident == number),
            )
            for number, started, text in rows
        ]

    def _create(self) -> None:
        try:
            self._check_file()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self.moved_aside = self.path.with_name(f"{FILE}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
            self.path.replace(self.moved_aside)
            self.path.with_name(f"{FILE}-journal").unlink(missing_ok=True)
            self._check_file()

    def _check_file(self) -> None:
        with closing(self._connect()) as connection:
            connection.executescript(SCHEMA)
            if (answer := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(answer)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            # Closing the connection without a commit rolls back.
            with closing(self._connect()) as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise OutboxError(f"{self.path}: the outbox of alerts failed: {error}") from None

    def _drop_old(self, connection: sqlite3.Connection, now: datetime) -> None:
        oldest = (now.astimezone(UTC) - KEEP).isoformat()
        connection.execute("DELETE FROM incidents WHERE COALESCE(ended_at, seen_at) < ?", (oldest,))
        connection.execute(
            "DELETE FROM incidents WHERE ended_at IS NOT NULL"
            " AND NOT EXISTS (SELECT 1 FROM deliveries WHERE incident = id AND state <> 2)"
        )

    def _end_old(self, connection: sqlite3.Connection, now: datetime) -> int:
        values = (now.astimezone(UTC).isoformat(), LIVE, (now.astimezone(UTC) - KEEP_OPEN).isoformat())
        return connection.execute(
            "UPDATE incidents SET ended_at = ? WHERE ended_at IS NULL AND scope <> ? AND seen_at < ?", values
        ).rowcount

    def _make_room(self, connection: sqlite3.Connection) -> bool:
        """Whether another incident fits; if not, the oldest one that ended is dropped for it."""
        if connection.execute("SELECT COUNT(*) FROM incidents").fetchone()[0] < self._max_incidents:
            return True
        oldest = "SELECT MIN(id) FROM incidents WHERE ended_at IS NOT NULL"
        return connection.execute(f"DELETE FROM incidents WHERE id = ({oldest})").rowcount > 0  # noqa: S608

    def _insert(self, connection: sqlite3.Connection, fingerprint: str, scope: str, at: str, alert: Alert) -> None:
        number = connection.execute(
            "INSERT INTO incidents (fingerprint, scope, started_at, seen_at, alert) VALUES (?, ?, ?, ?, ?)",
            (fingerprint, scope, at, at, alert.to_json()),
        ).lastrowid
        # A sink that has not been notified of the end of the last incident need not know that it was interrupted.
        connection.execute(
            "UPDATE deliveries SET incident = ?, state = state % 3 WHERE state <> 2 AND incident ="
            " (SELECT MAX(id) FROM incidents WHERE fingerprint = ? AND id < ?)",
            (number, fingerprint, number),
        )

    def _add_deliveries(self, connection: sqlite3.Connection, sinks: Sequence[str]) -> None:
        connection.executemany(
            "INSERT OR IGNORE INTO deliveries (incident, sink, state) SELECT id, ?, 0 FROM incidents"
            " WHERE ended_at IS NULL",
            [(sink,) for sink in sinks],
        )


def _build(number: int, started: str, ended: str | None, text: str) -> Notification:
    return Notification(
        status="resolved" if ended else "firing",
        incident=str(number),
        started_at=datetime.fromisoformat(started),
        ended_at=datetime.fromisoformat(ended) if ended else None,
        alert=Alert.model_validate_json(text, strict=False),
    )
