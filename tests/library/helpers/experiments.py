"""Logged experiments: rows of a champion and challengers, with labels and values of a metric."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.rollout import AUDIT_FILE, EXPERIMENT
from flywheel_ml.prediction_log import (
    CHALLENGER,
    SHADOW,
    MetricValue,
    Outcome,
    Prediction,
    Row,
    Writer,
    derive_shadow_id,
    new_ids,
    now_us,
)

CONTRACT = """
name: orders
columns:
  - {name: order, type: string, role: id}
  - {name: origin, type: string, categories: [EWR, JFK]}
  - {name: late, type: boolean, role: target}
"""
HOUR_US = 3_600_000_000
DIGESTS = {"1": "a" * 64, "2": "b" * 64, "3": "c" * 64}


class Version(NamedTuple):
    """How a version behaves.

    Attributes:
        share: of the rows; None for a shadow.
        wrong: share of its rows with a bad score.
        revenue: mean of the metric; None if no value arrives.
        failing: share of its rows that it does not answer.
        labelled: share of its rows with a label.
        latency_us: of its requests.
    """

    share: float | None
    wrong: float = 0.2
    revenue: float | None = 10.0
    failing: float = 0.0
    labelled: float = 1.0
    latency_us: int = 30_000


def write_audit(folder: Path, changes: Sequence[tuple[int, Mapping[str, float | None]]]) -> None:
    """Write an audit log: time of a change, and the versions next to champion 1 with their shares."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for at_us, shares in changes:
        entry: dict[str, Any] = {
            "at": datetime.fromtimestamp(at_us / 1e6, tz=UTC).isoformat(timespec="microseconds"),
            "who": "me",
            "what": "experiment",
            "from": None,
            "to": None,
            "why": "tried",
        }
        if shares:
            arms = [{"version": name, "digest": DIGESTS[name], "share": share} for name, share in shares.items()]
            entry[EXPERIMENT] = {"champion": {"version": "1", "digest": DIGESTS["1"]}, "arms": arms}
        lines.append(json.dumps(entry))
    (folder / AUDIT_FILE).write_text("\n".join(lines) + "\n")


def draw_rows(champion: Version, arms: Mapping[str, Version], count: int, seed: int, since_us: int) -> list[Row]:
    """Draw the rows of one period, of the hour from `since_us` on."""
    rng = np.random.default_rng(seed)
    several = len(arms) > 1
    challengers = {name: one for name, one in arms.items() if one.share is not None}
    shares = [
        1 - sum(one.share or 0 for one in challengers.values()),
        *(one.share or 0 for one in challengers.values()),
    ]
    owners = rng.choice(["1", *challengers], size=count, p=shares)
    found: list[Row] = []
    for at, (name, owner) in enumerate(zip(new_ids(count), owners, strict=True)):
        made, version = since_us + at * HOUR_US // count, champion if owner == "1" else challengers[owner]
        truth, failed = bool(rng.random() < 0.3), bool(rng.random() < version.failing)
        answered = "1" if failed else owner
        origin = "JFK" if rng.random() < 0.5 else "EWR"
        row = _build(name, made, answered, champion if failed else version, truth, origin, rng)
        if failed:
            row = row._replace(assigned_variant=f"{CHALLENGER}:{owner}" if several else CHALLENGER)
        found.append(row)
        for other, one in arms.items():
            if one.share is None:
                shadow = _build(derive_shadow_id(name), made, other, one, truth, origin, rng)
                found.append(shadow._replace(variant=SHADOW, entity_id=row.entity_id))
        if rng.random() < version.labelled:
            found.append(Outcome(name, made, json.dumps(truth), made))
        if version.revenue is not None:
            found.append(MetricValue(name, "revenue", made, float(rng.normal(version.revenue, 5)), made))
    return found


def _build(
    name: str, made: int, version: str, of: Version, truth: bool, origin: str, rng: np.random.Generator
) -> Prediction:
    right = rng.random() >= of.wrong
    score = 0.8 if right == truth else 0.2
    return Prediction(
        name,
        made,
        f"e-{name}",
        None,
        "champion" if version == "1" else CHALLENGER,
        version,
        DIGESTS[version],
        json.dumps({"origin": origin}),
        json.dumps({"prediction": score >= 0.5}),
        score,
        of.latency_us,
        False,
    )


class Experiment(NamedTuple):
    """A logged experiment in a folder."""

    settings: Settings

    @classmethod
    def create(cls, folder: Path) -> "Experiment":
        """Create the contract and the folders."""
        (folder / "contract.yaml").write_text(CONTRACT)
        return cls(Settings(prediction_log=str(folder / "log"), serving_folder=folder / "serving"))

    def log(
        self, champion: Version, arms: Mapping[str, Version], count: int = 3000, seed: int = 1, ago: int = 2
    ) -> None:
        """Log one period that began some hours ago and lasts an hour, and start it in the audit log."""
        since = now_us() - ago * HOUR_US
        write_audit(self.settings.serving_folder, [(since, {name: one.share for name, one in arms.items()})])
        self.write(draw_rows(champion, arms, count, seed, since + 60_000_000))

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows to the log."""
        with Writer(self.settings.prediction_log, "serve") as writer:
            writer.append(rows).result(30)
