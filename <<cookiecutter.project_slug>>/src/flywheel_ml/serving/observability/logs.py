"""JSON lines on stderr: the server's log, and its access log."""

import asyncio
import logging
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import structlog

from flywheel_ml.serving.observability.tracing import FIELDS

LINE_SECONDS = 0.05
"""Maximum time that an access log line is buffered."""


class AccessLog:
    """The access log on stderr; the lines of 50 ms are written together."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._waiting: list[str] = []

    def write(self, begun: str) -> None:
        """Write a JSON object; `begun` lacks the closing brace, and the time is appended."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(LINE_SECONDS, self.flush)
        self._waiting.append(f'{begun},"at":"{datetime.now(UTC).isoformat()}"}}\n')

    def flush(self) -> None:
        """Write the buffered lines."""
        text = "".join(self._waiting)
        self._waiting.clear()
        with suppress(OSError, ValueError):  # A closed stderr must not stop the server.
            self._stream.write(text)
            self._stream.flush()


def logger(stream: TextIO | None = None) -> structlog.typing.FilteringBoundLogger:
    """Return a logger that writes one JSON object per line."""
    made: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream or sys.stderr),
        processors=[*_PROCESSORS, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    return made


def unify_logging() -> None:
    """Format records of the standard library's logging in the same way; called by the serving process."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(FIELDS), *_PROCESSORS, _without_trace],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # OpenTelemetry would log each failed export and the callers' `tracestate`; `tracing` logs what is relevant.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return an error's type and the functions it passed; its message may contain a caller's data and is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "where": [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-8:]],
    }


def _without_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    raised = event.pop("exc_info", None)
    if isinstance(raised, tuple) and raised[1] is not None:
        event.update(describe_error(raised[1]))
    return event


_PROCESSORS: list[Any] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
]
