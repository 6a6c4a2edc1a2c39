"""One request of many rows, logged as one block: so many rows by themselves would cost as much as all the rest."""

import time
from collections.abc import Sequence

from flywheel_ml.prediction_log import Block, Prediction, block_ids, blocks, now_us
from flywheel_ml.serving.models.live import Live
from flywheel_ml.serving.observability.series import Laps
from flywheel_ml.serving.prediction.phases import OWN, Asked, Work, answer, named, number_texts, outputs, score, with_id

LEAST_ROWS = 64
"""A request of fewer rows is logged row by row."""


def is_for(live: Live) -> bool:
    """Whether a model's rows may be logged in blocks: while another is tried beside it, they go one by one."""
    return not (live.routing.challenger or live.routing.shadow)


def made(live: Live, ids: Sequence[str], inputs: bytes, outputs: bytes, since: float) -> Block:
    """The block of a request that came at `since` (`time.perf_counter`); the rest as `Block` has it."""
    latency_us = round((time.perf_counter() - since) * 1e6)
    return Block(
        ids[0],
        now_us(),
        len(ids),
        live.key,
        live.time,
        live.variant,
        live.ref.version,
        live.ref.digest,
        inputs,
        outputs,
        latency_us,
        live.degraded,
    )


def work(live: Live, asked: Asked, laps: Laps) -> Work | Asked:
    """As `phases.work` of one request; the request itself, with its instances, where that has to do it.

    Raises:
        Problem: as `Form.read`.
    """
    instances = asked.form.read(live, asked.body)
    laps.lap("check")
    if len(instances) < LEAST_ROWS:
        return asked._replace(instances=instances)
    try:
        predictions = score(live, instances)
    except Exception:
        return asked._replace(instances=instances)  # For some row the model has no number, and its prior answers.
    laps.lap("score")
    ids, told = block_ids(len(instances)), outputs(live, predictions)
    packed = blocks.pack_told(told, number_texts(predictions.scores))
    one = made(live, ids, blocks.pack_rows(instances), packed, asked.at)
    if asked.form is OWN:
        content = answer(live, map(with_id, ids, told))
    else:
        facts = (one.timestamp_us, None, None, one.variant, one.model_version, one.model_digest, "")
        rows = zip(ids, told, predictions.scores.tolist(), strict=True)
        each = [Prediction(name, *facts, output, own, one.latency_us, one.degraded) for name, output, own in rows]
        content = asked.form.write(live, each)
    laps.lap("write")
    return Work([one], content, named(live, predictions))
