"""Status of the rollout: the share, start and statistics of each variant, and the state of the circuit breaker."""

import json
import math
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from flywheel_ml.core.serving_folder import BundleRef, Routing
from flywheel_ml.core.settings import Settings
from flywheel_ml.flows.rollout import CHAMPION_CHANGES, read_audit
from flywheel_ml.prediction_log import Reader, VariantStats, merge_stats

SERVER_SECONDS = 2.0
HASHED = "sha256:"


class VariantStatus(NamedTuple):
    """A variant: its model, its share of the keys (None if it answers no requests by default), and its statistics."""

    variant: str
    version: str
    digest: str | None
    share: float | None
    since: str
    tally: VariantStats | None
    rows_without_digest: int = 0
    """Rows that were logged before digests existed and are matched by version only."""


def list_variant_statuses(routing: Routing, settings: Settings) -> list[VariantStatus]:
    """List the current variants, and those logged since the current experiment, or else the champion, started."""
    began = [
        entry["at"]
        for entry in read_audit(settings.serving_folder)
        if entry.get("what", CHAMPION_CHANGES[0]) in CHAMPION_CHANGES
    ]
    experiment = next(iter(routing.experiments), None)
    champion_since = began[-1] if began else routing.updated_at
    tallies = Reader(settings.prediction_log).compute_stats(_to_us(experiment.since if experiment else champion_since))
    current: list[VariantStatus] = []
    if routing.champion:
        share = max(0.0, 1 - math.fsum(one.share for one in routing.challengers))
        current.append(VariantStatus("champion", *_get_identity(routing.champion), share, champion_since, None))
    current += [
        VariantStatus("challenger", *_get_identity(one.ref), one.share, one.since, None) for one in routing.challengers
    ]
    if routing.shadow:
        current.append(VariantStatus("shadow", *_get_identity(routing.shadow.ref), None, routing.shadow.since, None))
    shown = []
    for each in current:
        matching = [tally for tally in tallies if _matches(each, tally)]
        tallies = [tally for tally in tallies if tally not in matching]
        rows_without_digest = sum(tally.rows for tally in matching if tally.model_digest is None)
        shown.append(
            each._replace(tally=merge_stats(matching) if matching else None, rows_without_digest=rows_without_digest)
        )
    others = [VariantStatus(one.variant, one.model_version, one.model_digest, None, "", one) for one in tallies]
    return [*shown, *others]


def _matches(one: VariantStatus, tally: VariantStats) -> bool:
    """Whether a tally belongs to this variant's model: by digest, or by version if it has none."""
    known = tally.model_digest
    is_same = tally.model_version == one.version if known is None else known == one.digest
    return tally.variant == one.variant and is_same


def _get_identity(ref: BundleRef) -> tuple[str, str]:
    return ref.version, ref.digest


def describe_breakers(routing: Routing, server: str, settings: Settings) -> list[str]:
    """Ask a running server for the circuit breaker of each experiment; one line for each."""
    if not routing.experiments:
        return []
    try:
        model = _fetch_model(server, settings)
    except (OSError, ValueError) as error:
        return [f"unknown: {server} does not answer ({getattr(error, 'reason', error)})"]
    # Servers of older versions of this package have one challenger.
    found = model.get("challengers") or [model.get("challenger")]
    running = [one for one in [*found, model.get("shadow")] if isinstance(one, dict)]
    if not running:
        return [f"unknown: {server} serves version {model.get('version')} without an experiment so far"]
    return [(f"version {one.get('version')} " if len(running) > 1 else "") + _describe_state(one) for one in running]


def _describe_state(experiment: Mapping[str, Any]) -> str:
    states = {
        "running": "closed",
        "paused": f"OPEN since {experiment.get('paused_at')}",
        "rejected": "rejected by the server",
    }
    reason = experiment.get("reason")
    return f"{states.get(str(experiment.get('state')), 'unknown')}{f': {reason}' if reason else ''}"


def _fetch_model(server: str, settings: Settings) -> dict[str, Any]:
    request = urllib.request.Request(f"{server.rstrip('/')}/model")
    if plain := [key for key in settings.keys if not key.startswith(HASHED)]:
        request.add_header("X-API-Key", plain[0])
    with urllib.request.urlopen(request, timeout=SERVER_SECONDS) as response:
        content = json.load(response)
    if not isinstance(content, dict):
        raise ValueError("it is not a server of this project")
    return content


def _to_us(text: str) -> int:
    timestamp = datetime.fromisoformat(text)
    return int((timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)).timestamp() * 1e6)
