"""The audit log of a serving folder: every change, one JSON line each."""

import json
import os
from pathlib import Path
from typing import Any

from flywheel_ml.core.serving_folder import Routing

AUDIT_FILE = "audit.jsonl"
CHAMPION_CHANGES = ("champion", ROLLBACK := "rollback")
"""Values of `what` in the audit log for a change of champion."""
RENUMBERED = "renumbered"
"""Its value when the same champion gets another number, for example after the registry was lost."""
EXPERIMENT = "experiment"
"""Key of an entry of the audit log with the champion and the versions alongside it, if there are any."""


def read_audit(folder: Path) -> list[dict[str, Any]]:
    """Read every change of the serving folder, oldest first: when, who, what, from, to, why."""
    path = folder / AUDIT_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    # A line that a crash cut off is skipped.
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def append_entry(folder: Path, routing: Routing) -> None:
    """Append the change that led to `routing` to the audit log, unless it is already there."""
    entries = read_audit(folder)
    if routing.change is None or (entries and entries[-1]["at"] == routing.updated_at):
        return
    change = routing.change
    entry: dict[str, Any] = {
        "at": routing.updated_at,
        "who": change.who,
        "what": change.what,
        "from": change.before,
        "to": change.after,
        "why": routing.reason,
    }
    if routing.champion and routing.experiments:
        entry[EXPERIMENT] = {
            "champion": routing.champion.model_dump(),
            "arms": [{**one.ref.model_dump(), "share": getattr(one, "share", None)} for one in routing.experiments],
        }
    path = folder / AUDIT_FILE
    ends_mid_line = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n" * ends_mid_line + json.dumps(entry, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def find_champion_change(folder: Path) -> dict[str, Any] | None:
    """Find the last change of champion."""
    return next((entry for entry in reversed(read_audit(folder)) if entry.get("what") in CHAMPION_CHANGES), None)
