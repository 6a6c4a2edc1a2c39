"""The project's server with a log that discards all rows, to measure the cost of durability. For benchmarks only."""

from concurrent.futures import Future
from typing import Any

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving import app
from flywheel_ml.serving.process import server
from target import PROJECT


class NullWriter:
    """A writer that discards its rows."""

    unavailable_reason = outage = spool = None
    spooled = lost_files = 0
    max_parallel_commits = 1

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "NullWriter":
        return self

    def __exit__(self, *_: object) -> None: ...

    def try_commit(self, _: Any) -> bool:
        return True

    def append(self, _: Any) -> "Future[None]":
        done: Future[None] = Future()
        done.set_result(None)
        return done


if __name__ == "__main__":
    app.InstrumentedWriter = NullWriter  # type: ignore[assignment,attr-defined]
    server.run(PROJECT, Settings, "127.0.0.1", 0, 1)
