"""The decisions file: one JSON line for each window or look at a canary, each attempt, and each outcome."""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from flywheel_ml.core.retraining_params import Action
from flywheel_ml.monitoring.policy.deciding import Decision, Record
from flywheel_ml.utils import config_model
from flywheel_ml.utils.files import canonical_json

ACTING: tuple[Action, ...] = ("retrain", "roll back")
"""Actions that have an outcome."""


CanaryAction = Literal["advance", "promote", "roll back", "expire", "continue", "hold"]
CANARY_ACTING: tuple[CanaryAction, ...] = ("advance", "promote", "roll back", "expire")
"""Actions of a canary that have an outcome."""


class CanaryRecord(config_model.StrictModel):
    """One look at a canary: what was decided, and the evidence.

    Attributes:
        ramp: id of the ramp.
        begun: how many of its steps had begun.
        step: label of the running step.
        champion, version: of the champion and of the challenger.
        waits: whether the action waits for a person.
        interval: of the difference in mean loss: estimate, low and high end; None if it is not known.
        guards: name → log evidence, and the threshold at which it trips.
        evidence: of each step, as in `StepEvidence`.
    """

    kind: Literal["canary"] = "canary"
    id: str
    at: datetime
    ramp: str
    begun: int
    step: str
    champion: str
    version: str
    action: CanaryAction
    waits: bool
    reason: str
    alpha: float
    interval: tuple[float, float, float] | None
    guards: dict[str, tuple[float, float]]
    evidence: tuple[dict[str, Any], ...]
    process: str

    @property
    def is_due(self) -> bool:
        """Whether the action is to be carried out."""
        return self.action in CANARY_ACTING and not self.waits


class Attempt(config_model.StrictModel):
    """Another process, `pid@host`, carries a decision out, after the one before it was killed."""

    kind: Literal["attempt"] = "attempt"
    record: str
    action: Action
    at: datetime
    process: str


class Outcome(config_model.StrictModel):
    """How the action of a record ended."""

    kind: Literal["outcome"] = "outcome"
    record: str
    action: Action | CanaryAction
    at: datetime
    succeeded: bool
    text: str


class Pending(NamedTuple):
    """A decision without an outcome, and the process that last carried it out."""

    record: Record
    decision: Decision
    process: str


class Decisions(NamedTuple):
    """The content of the file, oldest first."""

    records: list[Record]
    attempts: list[Attempt]
    outcomes: list[Outcome]
    canaries: list[CanaryRecord]

    def find_outcome(self, record: Record | CanaryRecord, action: Action | CanaryAction) -> Outcome | None:
        """Find the outcome of a record's action."""
        return next((one for one in self.outcomes if (one.record, one.action) == (record.id, action)), None)

    def list_pending(self) -> Iterator[Pending]:
        """List the decisions without an outcome."""
        for record in self.records:
            for decision in record.decisions:
                if decision.action in ACTING and self.find_outcome(record, decision.action) is None:
                    tried = [one for one in self.attempts if (one.record, one.action) == (record.id, decision.action)]
                    yield Pending(record, decision, tried[-1].process if tried else record.process)

    def find_last_canary(self, ramp: str | None = None) -> CanaryRecord | None:
        """Find the last look, by default at any ramp."""
        return next((one for one in reversed(self.canaries) if ramp in (None, one.ramp)), None)

    def find_pending_canary(self) -> CanaryRecord | None:
        """Find the last look whose action is due and has no outcome."""
        due = (one for one in reversed(self.canaries) if one.is_due)
        last = next(due, None)
        return last if last and self.find_outcome(last, last.action) is None else None


def read(path: Path) -> Decisions:
    """Read the file; lines that a crash cut off are skipped."""
    found = Decisions([], [], [], [])
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        for model, part in (
            (Record, found.records),
            (Attempt, found.attempts),
            (Outcome, found.outcomes),
            (CanaryRecord, found.canaries),
        ):
            if (entry := _parse(line, model)) is not None:
                part.append(entry)
    return found


def append(path: Path, *entries: Record | CanaryRecord | Attempt | Outcome) -> None:
    """Append one line for each entry in a single write, synced to the disk; the caller holds the lock of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(canonical_json(entry.model_dump(mode="json")) + "\n" for entry in entries).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        # A line that a crash cut off stays a line of its own.
        broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * broken + lines)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(line: str, model: type[Any]) -> Any:
    try:
        content = json.loads(line)
        if content.get("kind") != model.model_fields["kind"].default:
            return None
        return model.model_validate_json(line)
    except (ValueError, ValidationError, AttributeError):
        return None
