"""A webhook, and an outbox."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel_ml.monitoring.alerting.outbox import Outbox
from library.helpers.sinks import Hook, serve


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    with serve(server):
        yield server


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")
