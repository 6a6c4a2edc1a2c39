"""The prediction pipeline, before the commit: decode → score → log rows → encode.

`complete` handles a batch of requests and logs them row by row. `complete_block` handles one request of many rows and
logs it as a block, because separate rows would cost as much as all other steps together.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_ml.prediction_log import (
    CHALLENGER,
    Prediction,
    blocks,
    build_block,
    build_predictions,
    derive_shadow_id,
    new_block_ids,
    new_ids,
)
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.models.output_texts import format_numbers
from flywheel_ml.serving.models.served_model import Deployment, ServedModel
from flywheel_ml.serving.observability.phases import Marks
from flywheel_ml.serving.prediction import parallel
from flywheel_ml.serving.prediction.requests import CompletedRequest, Instance, PredictRequest, Results, RowPrediction

MIN_BLOCK_ROWS = 64
"""Requests with fewer rows are logged row by row."""


def complete(
    model: ServedModel, requests: Sequence[PredictRequest], marks: Marks | None = None
) -> list[CompletedRequest | Exception]:
    """Complete requests with one call of the model; an invalid request gets its error instead."""
    marks = marks if marks is not None else []
    decoded: list[list[dict[str, Any]] | Problem] = []
    own_rows: list[list[dict[str, Any]]] = []
    all_rows: list[dict[str, Any]] = []
    for request in requests:
        try:
            rows = request.instances
            if rows is None:
                rows = request.codec.decode(model, request.body)
        except Problem as problem:
            decoded.append(problem)
            own_rows.append([])
            continue
        decoded.append(rows)
        own_rows.append(_select_unanswered(request, rows) if request.predictions_by_position else rows)
        all_rows += own_rows[-1]
    marks.append(time.perf_counter())
    bundle = model.bundle
    try:
        inputs = bundle.encode_rows(all_rows)
        run_parallel = len(all_rows) >= parallel.MIN_ROWS
        predictions = bundle.to_predictions(parallel.run(bundle, inputs) if run_parallel else bundle.run(inputs))
    except Exception as error:
        # One request whose prediction is not finite must not fail the others.
        if len(requests) > 1:
            return [complete(model, [request])[0] for request in requests]
        if model.is_prior or isinstance(decoded[0], Problem):
            return [error]
        return complete(model, [_answer_by_prior(model, requests[0]._replace(instances=decoded[0]), error)])
    scored_at = time.perf_counter()
    marks.append(scored_at)
    outputs, classes = model.formatter.write(predictions), model.formatter.name_classes(predictions)
    scores = predictions.scores.tolist()
    ids = new_ids(len(all_rows))
    completed: list[CompletedRequest | Exception] = []
    at = 0
    for request, instances, rows in zip(requests, decoded, own_rows, strict=True):
        if isinstance(instances, Problem):
            completed.append(instances)
            continue
        row_range = slice(at, at := at + len(rows))
        if request.predictions_by_position:
            predicted = [
                RowPrediction(*row)
                for row in zip(outputs[row_range], classes[row_range], scores[row_range], strict=True)
            ]
            completed.append(_merge(model, request, instances, predicted))
            continue
        prediction_ids = request.ids or ids[row_range]
        latency_us = round((scored_at - request.received_at) * 1e6)
        logged = build_predictions(
            model.origin, prediction_ids, instances, outputs[row_range], scores[row_range], latency_us
        )
        logged = _mark_assigned(request, logged)
        body = request.codec.encode(model, Results(prediction_ids, outputs[row_range]))
        completed.append(CompletedRequest(logged, body, classes[row_range], instances))
    marks.append(time.perf_counter())
    return completed


def complete_block(model: ServedModel, request: PredictRequest, marks: Marks) -> CompletedRequest | PredictRequest:
    """Complete one request of many rows; returns the decoded request if it must be handled row by row.

    Raises:
        Problem: like `Codec.decode`.
    """
    instances = request.decode(model)
    marks.append(time.perf_counter())
    if len(instances) < MIN_BLOCK_ROWS:
        return request._replace(instances=instances)
    try:
        predictions = model.bundle.to_predictions(parallel.run(model.bundle, model.bundle.encode_rows(instances)))
    except Exception:
        return request._replace(instances=instances)  # The model fails on some row, which the prior has to answer.
    marks.append(time.perf_counter())
    ids, outputs = new_block_ids(len(instances)), model.formatter.write(predictions)
    packed = blocks.pack_outputs(outputs, format_numbers(predictions.scores))
    block = build_block(model.origin, ids, blocks.pack_inputs(instances), packed, request.measure_latency_us())
    body = request.codec.encode(model, Results(ids, outputs))
    marks.append(time.perf_counter())
    return CompletedRequest([block], body, model.formatter.name_classes(predictions))


def can_log_blocks(deployment: Deployment) -> bool:
    """Whether rows may be logged in blocks; during an experiment they are logged one by one."""
    return not deployment.routing.experiments


def score_or_none(model: ServedModel, instances: Sequence[Instance]) -> list[RowPrediction | None]:
    """Score rows independently of each other; None where a prediction is not finite."""
    output = model.bundle.run(model.bundle.encode_rows(instances))
    finite = np.isfinite(output).all(axis=1)
    predictions = model.bundle.to_predictions(output[finite])
    parts = (model.formatter.write(predictions), model.formatter.name_classes(predictions), predictions.scores.tolist())
    found = map(RowPrediction, *parts)
    return [next(found) if is_finite else None for is_finite in finite.tolist()]


def build_shadow_rows(model: ServedModel, answered: Sequence[tuple[Instance, Prediction]]) -> list[Prediction]:
    """Return a shadow's log rows for answered rows; `build_failed_row` builds those without a finite prediction.

    `derive_shadow_id` derives the id of each from the answered row's id.
    """
    started = time.perf_counter()
    found = score_or_none(model, [instance for instance, _ in answered])
    latency_us = round((time.perf_counter() - started) * 1e6)
    failed = [build_failed_row(model, row) for _, row in answered]
    return [
        row
        if predicted is None
        else row._replace(output=predicted.output, score=predicted.score, latency_us=latency_us, degraded=False)
        for row, predicted in zip(failed, found, strict=True)
    ]


def build_failed_row(model: ServedModel, row: Prediction) -> Prediction:
    """Return a shadow's log row without a prediction of its own: it has the answer that was sent, and is degraded."""
    return row._replace(
        id=derive_shadow_id(row.id),
        variant=model.variant,
        model_version=model.ref.version,
        model_digest=model.ref.digest,
        degraded=True,
        assigned_variant=None,
    )


def _mark_assigned(request: PredictRequest, logged: list[Prediction]) -> list[Prediction]:
    """Mark the rows that a challenger was to answer and did not."""
    if not request.assigned:
        return logged
    failed = {at: name for at, name in request.assigned.items() if logged[at].variant != CHALLENGER}
    return [row._replace(assigned_variant=failed[at]) if at in failed else row for at, row in enumerate(logged)]


def _select_unanswered(request: PredictRequest, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [instance for at, instance in enumerate(instances) if at not in request.predictions_by_position]


def _answer_by_prior(model: ServedModel, request: PredictRequest, error: Exception) -> PredictRequest:
    """Have the class prior answer the rows that the model cannot score; they are marked as degraded."""
    logging.getLogger(__name__).error(
        "the model failed, the class prior answers: %s", type(error).__name__, extra=request.context.fields
    )
    instances = request.instances or []
    positions = [at for at in range(len(instances)) if at not in request.predictions_by_position]
    unanswered_rows = [instances[at] for at in positions]
    try:
        own_predictions = score_or_none(model, unanswered_rows)
    except Exception:
        own_predictions = [None] * len(unanswered_rows)
    predictions = {**request.predictions_by_position}
    for at, predicted, stand_in in zip(
        positions, own_predictions, score_or_none(model.prior, unanswered_rows), strict=True
    ):
        if predicted is not None:
            predictions[at] = model, predicted
        elif stand_in is not None:
            predictions[at] = model.prior, stand_in
    return request._replace(predictions_by_position=predictions)


def _merge(
    model: ServedModel, request: PredictRequest, instances: Sequence[Instance], own_predictions: Sequence[RowPrediction]
) -> CompletedRequest:
    """Complete a request whose rows several models answered; `own_predictions` are its own model's, in order."""
    remaining = iter(own_predictions)
    by_row = [request.predictions_by_position.get(at) or (model, next(remaining)) for at in range(len(instances))]
    ids = request.ids or new_ids(len(instances))
    logged: dict[int, Prediction] = {}
    models = {id(by): by for by, _ in by_row}
    for by in models.values():
        positions = [at for at, (found, _) in enumerate(by_row) if found is by]
        # The contract of the request's own model decoded the rows, so its column names apply.
        rows = build_predictions(
            by.origin._replace(entity_column=model.id_column, event_timestamp_column=model.time_column),
            [ids[at] for at in positions],
            [instances[at] for at in positions],
            [by_row[at][1].output for at in positions],
            [by_row[at][1].score for at in positions],
            request.measure_latency_us(),
        )
        logged |= zip(positions, rows, strict=True)
    results = Results(ids, [predicted.output for _, predicted in by_row], [by for by, _ in by_row])
    body = request.codec.encode(by_row[0][0] if len(models) == 1 else model, results)
    in_order = _mark_assigned(request, [logged[at] for at in range(len(instances))])
    return CompletedRequest(
        in_order,
        body,
        [one.class_name for one in own_predictions],
        instances,
        list(request.predictions_by_position.values()),
    )
