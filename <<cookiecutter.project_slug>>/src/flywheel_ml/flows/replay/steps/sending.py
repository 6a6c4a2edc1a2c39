"""Sends one part of a period: batch scoring predicts all rows, the API a sample, and labels that are due arrive."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from flywheel_ml.core import serving_folder
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.data import tables
from flywheel_ml.flows import scoring
from flywheel_ml.flows.replay.context import ReplayContext, Stopwatch
from flywheel_ml.flows.replay.steps import measuring
from flywheel_ml.flows.replay.steps.server import Client, Instance
from flywheel_ml.monitoring.replay.result import FirstModel


class Sent(NamedTuple):
    """What was sent of one part.

    Attributes:
        rows: rows of the part.
        answers: of both models in batch, with the labels that have become known since.
        version: the champion.
        api_rows, rejected: rows sent through the API, and those that it rejected, the last for `rejection`.
        compared, agreed: answers of the champion through the API, and those that equal batch scoring to the last bit.
        labels: prediction id → label, of the labelled rows sent through the API.
    """

    rows: int
    answers: measuring.Answers
    version: str
    api_rows: int
    rejected: int
    rejection: str
    compared: int
    agreed: int
    labels: list[tuple[str, Any]]


class Sender:
    """Sends rows with the champion of the serving folder.

    Args:
        context: of the replay.
        client: of the running server.
        frozen: the first model, opened.
    """

    def __init__(self, context: ReplayContext, client: Client, first: FirstModel, frozen: Bundle) -> None:
        self._context = context
        self._client = client
        self._first = first
        self._frozen = frozen
        self._folder = context.workspace.folder / "scored"

    def send(self, part: int, stopwatch: Stopwatch) -> Sent | None:
        """Send the rows of a part; None if it has none."""
        context = self._context
        rows = context.timeline.get_rows(part)
        if rows.is_empty():
            return None
        inputs = rows.drop(context.contract.target.name)
        with stopwatch.time("batch"):
            scored, frozen, version = self._score(inputs, part)
            batch = measuring.read_batch_outputs(scored, context.contract)
            differs = frozen != scored
            answers = measuring.read_answers(scored, frozen, rows, self._frozen, differs)
        with stopwatch.time("API"):
            chosen = _choose(
                rows.height, max(1, context.replay.api_rows // context.replay.parts), context.params.seed + part
            )
            instances = _to_instances(inputs[chosen])
            answered = self._client.predict(instances, context.replay.request_rows)
        truth = rows[context.contract.target.name][chosen].to_list()
        found = answered.predictions
        own = [at for at, one in found.items() if one["variant"] == "champion"]
        agreed = sum(measuring.get_api_output(found[at], context.contract) == batch[chosen[at]] for at in own)
        labels = [(one["id"], truth[at]) for at, one in found.items() if truth[at] is not None]
        rejected = len(instances) - len(found)
        return Sent(rows.height, answers, version, len(instances), rejected, answered.reason, len(own), agreed, labels)

    def deliver(self, labels: Sequence[tuple[str, Any]], stopwatch: Stopwatch) -> None:
        """Send the labels of an earlier part to /feedback."""
        with stopwatch.time("labels"):
            self._client.send_labels(labels)

    def _score(self, inputs: pl.DataFrame, part: int) -> tuple[Path, Path, str]:
        """Score with the champion, and with the frozen model if it is another one; return both files."""
        context = self._context
        source, scored = self._folder / f"{part}.parquet", self._folder / f"{part}-live.parquet"
        tables.write(inputs, source)
        done = scoring.score(context.project, source, scored, context.settings, context.params.score)
        routing = serving_folder.read_routing(context.settings.serving_folder)
        if routing.champion is not None and routing.champion.digest == self._frozen.digest:
            return scored, scored, done.model_version
        other = self._folder / f"{part}-frozen.parquet"
        chunk = context.params.score.chunk_rows
        scoring.score_to_file(source, other, self._frozen, self._first.version, chunk, int)
        return scored, other, done.model_version


def _choose(n_rows: int, wanted: int, seed: int) -> list[int]:
    """Choose rows at random, in their order."""
    if n_rows <= wanted:
        return list(range(n_rows))
    return pl.int_range(n_rows, eager=True).sample(wanted, seed=seed).sort().to_list()


def _to_instances(rows: pl.DataFrame) -> list[Instance]:
    """Convert rows to JSON objects, as a client would send them."""
    plain = rows.fill_nan(None)
    return [
        {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
        for row in plain.to_dicts()
    ]
