"""Reads the evidence about a canary from the prediction log, one step at a time."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flywheel_ml.core.contract import Contract
from flywheel_ml.experiments.evidence import CanaryPlan, Loss, StepEvidence, VariantEvidence
from flywheel_ml.experiments.log_counts import CHAMPION, ExperimentReader, VariantCounts
from flywheel_ml.experiments.losses import LossAccumulator, compute_loss
from flywheel_ml.experiments.sequential import LossSums
from flywheel_ml.prediction_log import CHALLENGER, LoggedPrediction, Prediction, derive_shadow_id

CHUNK_ROWS = 5000


class StepSpan(NamedTuple):
    """One step of a ramp, and the rows that were routed by it: since ≤ time < until, in microseconds since 1970."""

    step: int
    since_us: int
    until_us: int


class Models(NamedTuple):
    """Digests of the two models, and their contract, which has the same classes for both."""

    champion: str
    challenger: str
    contract: Contract


def read_evidence(
    reader: ExperimentReader, spans: Sequence[StepSpan], models: Models, plan: CanaryPlan
) -> list[StepEvidence]:
    """Read the evidence of all steps so far, in order.

    Args:
        reader: of the log.
        spans: the steps.
        models: that are compared.
        plan: of the canary.
    """
    found = []
    for span in spans:
        is_shadow = plan.steps[span.step].share is None
        found.append((_read_shadow if is_shadow else _read_share)(reader, span, models, plan))
    return found


def read_losses(
    reader: ExperimentReader,
    span: StepSpan,
    model_digest: str | None,
    variant: str | None,
    contract: Contract,
    loss: Loss,
) -> Iterator[tuple[LoggedPrediction, float]]:
    """Yield the labelled rows that a model was assigned and answered in a variant, each with its loss.

    None selects every model, or every variant but the shadow.
    """
    for row in reader.labelled(span.since_us, span.until_us, model_digest=model_digest, variant=variant):
        made = row.prediction
        if made.degraded or made.assigned_variant is not None or row.label is None:
            continue
        if (found := compute_loss(loss, made, row.label, contract)) is not None:
            yield row, found


def read_pairs(
    reader: ExperimentReader, span: StepSpan, models: Models, loss: Loss
) -> Iterator[tuple[Prediction, float, float]]:
    """Yield the champion's labelled rows that the shadow answered too, each with both losses, the champion's first."""
    answered = read_losses(reader, span, models.champion, CHAMPION, models.contract, loss)
    while some := list(itertools.islice(answered, CHUNK_ROWS)):
        shadows = _find_shadows(reader, [row.prediction.id for row, _ in some], models.challenger)
        for row, of_champion in some:
            other = shadows.get(derive_shadow_id(row.prediction.id))
            if other is None or row.label is None:
                continue
            if (of_shadow := compute_loss(loss, other, row.label, models.contract)) is not None:
                yield row.prediction, of_champion, of_shadow


def _read_share(reader: ExperimentReader, span: StepSpan, models: Models, plan: CanaryPlan) -> StepEvidence:
    by_entity = reader.has_repeated_entities(span.since_us, span.until_us)
    floor_us = round(plan.min_latency_seconds * 1e6)
    counts = reader.count_variants(span.since_us, span.until_us, by_entity, floor_us)
    sums = {CHAMPION: LossSums(), CHALLENGER: LossSums()}
    if plan.comparison == "randomised":
        for variant, digest in ((CHAMPION, models.champion), (CHALLENGER, models.challenger)):
            losses = LossAccumulator(by_entity)
            for row, value in read_losses(reader, span, digest, variant, models.contract, plan.loss):
                losses.add(row.prediction.entity_id, value)
            sums[variant] = losses.sum_up()
    champion, challenger = (
        _build(counts.get(variant, VariantCounts()), sums[variant]) for variant in (CHAMPION, CHALLENGER)
    )
    return StepEvidence(span.step, champion, challenger)


def _read_shadow(reader: ExperimentReader, span: StepSpan, models: Models, plan: CanaryPlan) -> StepEvidence:
    by_entity = reader.has_repeated_entities(span.since_us, span.until_us)
    counts = reader.count_variants(span.since_us, span.until_us, by_entity=False)
    shadow = reader.count_shadow(span.since_us, span.until_us, models.challenger)
    champion = VariantEvidence(*counts.get(CHAMPION, VariantCounts())[:2])
    challenger = VariantEvidence(shadow.rows, shadow.errors)
    losses = LossAccumulator(by_entity)
    for row, of_champion, of_shadow in read_pairs(reader, span, models, plan.loss):
        losses.add(row.entity_id, of_shadow - of_champion)
    return StepEvidence(span.step, champion, challenger, losses.sum_up())


def _find_shadows(reader: ExperimentReader, ids: Sequence[str], model_digest: str) -> dict[str, Prediction]:
    """Find the shadow's own answers to the champion's rows."""
    found = reader.find_all([derive_shadow_id(one) for one in ids])
    return {one.id: one for one in found if one.model_digest == model_digest and not one.degraded}


def _build(counts: VariantCounts, losses: LossSums) -> VariantEvidence:
    return VariantEvidence(counts.rows, counts.errors, counts.latencies, losses)
