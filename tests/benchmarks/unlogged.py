"""This project's server with a log that keeps nothing: what durability costs. For benchmarks only."""

from concurrent.futures import Future
from typing import Any

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving import app
from flywheel_ml.serving.process import server
from target import PROJECT


class Nowhere:
    """Takes rows and forgets them."""

    fault = outage = spool = None
    spooled = lost_files = 0
    lanes = 1

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "Nowhere":
        return self

    def __exit__(self, *_: object) -> None: ...

    def commit(self, _: Any) -> bool:
        return True

    def append(self, _: Any) -> "Future[None]":
        done: Future[None] = Future()
        done.set_result(None)
        return done


if __name__ == "__main__":
    app.WatchedWriter = Nowhere  # type: ignore[assignment,attr-defined]
    server.run(PROJECT, Settings, "127.0.0.1", 0, 1)
