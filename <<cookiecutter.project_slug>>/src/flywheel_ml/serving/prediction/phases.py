"""What is done for prediction requests between their arrival and the commit, as functions of what they are given.

The phases: a `Form` reads and checks, `score` asks the model, `outputs` and `rows` say what is told and logged, and
the form writes the answer.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic_core import to_json

from flywheel_ml.core.bundle import Predictions
from flywheel_ml.prediction_log import Prediction, Row, dumps, new_ids, now_us
from flywheel_ml.prediction_log.blocks import microseconds
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.experiments.trial import NO_WISH, Wish
from flywheel_ml.serving.models.live import Live
from flywheel_ml.serving.observability.series import Laps
from flywheel_ml.serving.observability.tracing import NOBODY, Origin
from flywheel_ml.serving.prediction import parallel

Instance = Mapping[str, Any]


class Form(Protocol):
    """How a protocol writes what all of them say; made anew for a request if it has to remember something of it."""

    def read(self, live: Live, body: bytes) -> list[dict[str, Any]]:
        """The instances of a body, checked by the contract; raises `Problem` where they are not as agreed."""
        ...

    def write(self, live: Live, logged: Sequence[Prediction]) -> bytes:
        """The body of the answer, sent once these rows are committed."""
        ...


class Told(NamedTuple):
    """One row's answer: a JSON object, the class as metrics name it, the score."""

    output: str
    name: str
    score: float


class Asked(NamedTuple):
    """A request's body, when it came (`time.perf_counter`), its protocol, what its headers wish, and who it is.

    `instances` is there once the body has been checked, `ids` of their predictions once it is clear who answers which;
    `given` has the rows that are answered already, by another model: place → model and answer.
    """

    body: bytes
    at: float
    form: Form
    wish: Wish = NO_WISH
    origin: Origin = NOBODY
    instances: list[dict[str, Any]] | None = None
    ids: Sequence[str] | None = None
    given: Mapping[int, tuple[Live, Told]] = {}


class Work(NamedTuple):
    """What one request came to: rows for the log, and the answer that may be sent once they are committed.

    `classes` are those of the rows that the batch answered; `others` has what was given beside it.
    """

    rows: Sequence[Row]
    answer: bytes
    classes: list[str]
    instances: Sequence[Instance] = ()
    others: Sequence[tuple[Live, Told]] = ()


def work(live: Live, asked: Sequence[Asked], laps: Laps | None = None) -> list[Work | Exception]:
    """All phases before the commit, in one call of the model; a request with a fault has that in place of its work."""
    laps = laps if laps is not None else Laps(0.0)
    checked: list[list[dict[str, Any]] | Problem] = []
    for one in asked:
        try:
            checked.append(one.form.read(live, one.body) if one.instances is None else one.instances)
        except Problem as problem:
            checked.append(problem)
    mine = [
        instances if isinstance(instances, Problem) or not one.given else _without(instances, one.given)
        for one, instances in zip(asked, checked, strict=True)
    ]
    together = [instance for instances in mine if not isinstance(instances, Problem) for instance in instances]
    laps.lap("check")
    try:
        predictions = score(live, together)
    except Exception as error:
        # The others shall not suffer from the one whose answer is no number.
        if len(asked) > 1:
            return [work(live, [one])[0] for one in asked]
        if live.is_prior or isinstance(checked[0], Problem):
            return [error]
        return work(live, [_rescued(live, asked[0]._replace(instances=checked[0]), error)])
    laps.lap("score")
    told, classes, scores = outputs(live, predictions), named(live, predictions), predictions.scores.tolist()
    ids = new_ids(len(together))
    found: list[Work | Exception] = []
    at = 0
    for one, instances, own_rows in zip(asked, checked, mine, strict=True):
        if isinstance(instances, Problem) or isinstance(own_rows, Problem):
            found.append(instances)  # type: ignore[arg-type]
            continue
        own = slice(at, at := at + len(own_rows))
        if one.given:
            answers = [Told(*row) for row in zip(told[own], classes[own], scores[own], strict=True)]
            found.append(_composed(live, one, instances, answers))
            continue
        logged = rows(live, instances, told[own], scores[own], one.at, one.ids or ids[own])
        found.append(Work(logged, one.form.write(live, logged), classes[own], instances))
    laps.lap("write")
    return found


def _without(instances: Sequence[dict[str, Any]], given: Mapping[int, Any]) -> list[dict[str, Any]]:
    return [instance for at, instance in enumerate(instances) if at not in given]


def _rescued(live: Live, asked: Asked, error: Exception) -> Asked:
    """A request with rows that its model cannot answer: the prior answers those, marked as degraded."""
    logging.getLogger(__name__).error(
        "the model failed, its prior answers: %s", type(error).__name__, extra=asked.origin.fields
    )
    instances = asked.instances or []
    places = [at for at in range(len(instances)) if at not in asked.given]
    mine = [instances[at] for at in places]
    try:
        own = attempt(live, mine)
    except Exception:
        own = [None] * len(mine)
    given = {**asked.given}
    for at, told, prior in zip(places, own, attempt(live.prior, mine), strict=True):
        if told is not None:
            given[at] = live, told
        elif prior is not None:
            given[at] = live.prior, prior
    return asked._replace(given=given)


def _composed(live: Live, asked: Asked, instances: Sequence[Instance], answers: Sequence[Told]) -> Work:
    """The work on a request whose rows several models answered: `answers` are those of its own model, in order."""
    own = iter(answers)
    by_row = [asked.given.get(at) or (live, next(own)) for at in range(len(instances))]
    ids = asked.ids or new_ids(len(instances))
    logged: dict[int, Prediction] = {}
    lives = {id(by): by for by, _ in by_row}
    for by in lives.values():
        places = [at for at, (found, _) in enumerate(by_row) if found is by]
        made = rows(
            by,
            [instances[at] for at in places],
            [by_row[at][1].output for at in places],
            [by_row[at][1].score for at in places],
            asked.at,
            [ids[at] for at in places],
            live,
        )
        logged |= zip(places, made, strict=True)
    in_order = [logged[at] for at in range(len(instances))]
    text = asked.form.write(by_row[0][0] if len(lives) == 1 else live, in_order)
    return Work(in_order, text, [told.name for told in answers], instances, list(asked.given.values()))


def score(live: Live, instances: Sequence[Instance]) -> Predictions:
    """All instances in one call of the model."""
    return live.bundle.decide(parallel.run(live.bundle, live.bundle.encode_rows(instances)))


def attempt(live: Live, instances: Sequence[Instance]) -> list[Told | None]:
    """As `score`, told row by row; None where the model's answer is no number."""
    answers = live.bundle.run(live.bundle.encode_rows(instances))
    finite = np.isfinite(answers).all(axis=1)
    predictions = live.bundle.decide(answers[finite])
    parts = (outputs(live, predictions), named(live, predictions), predictions.scores.tolist())
    told = map(Told, *parts)
    return [next(told) if is_finite else None for is_finite in finite.tolist()]


def shadow_rows(live: Live, asked: Sequence[tuple[Instance, Prediction]]) -> list[Prediction]:
    """What the shadow would have answered to rows, for the log; without those where that is no number.

    A row's id is the `twin` of the answered one's.
    """
    started = time.perf_counter()
    found = attempt(live, [instance for instance, _ in asked])
    latency_us = round((time.perf_counter() - started) * 1e6)
    return [
        row._replace(
            id=twin(row.id),
            variant=live.variant,
            model_version=live.ref.version,
            model_digest=live.ref.digest,
            output=told.output,
            score=told.score,
            latency_us=latency_us,
            degraded=False,
        )
        for (_, row), told in zip(asked, found, strict=True)
        if told is not None
    ]


def twin(name: str) -> str:
    """The id of the row that a shadow logs beside the prediction of this id: the same moment, other digits."""
    return name[:12] + blake2b(name.encode(), digest_size=10).hexdigest()


def outputs(live: Live, predictions: Predictions) -> list[str]:
    """What each instance is told and the log keeps, as JSON objects."""
    wide, numbers = predictions.output.shape[1], number_texts(predictions.output.ravel())
    each = [numbers[at : at + wide] for at in range(0, len(numbers), wide)]
    if not live.class_names:
        return [f'{{"prediction":{value},"interval":[{low},{high}]}}' for value, low, high in each]
    names, form = live.class_texts, live.probabilities_form
    values = predictions.values.tolist()
    return [f'{{"prediction":{names[value]},{form % tuple(own)}}}' for value, own in zip(values, each, strict=True)]


def number_texts(values: np.ndarray) -> list[str]:
    """Finite numbers [n] as JSON; one by one Python would take four times as long."""
    return to_json(values.tolist()).decode()[1:-1].split(",") if len(values) else []


def named(live: Live, predictions: Predictions) -> list[str]:
    """Each prediction's class as the metrics name it; all numbers count as one."""
    values = predictions.values.tolist()
    return [live.names[value] for value in values] if live.class_names else ["value"] * len(values)


def rows(
    live: Live,
    instances: Sequence[Instance],
    told: Sequence[str],
    scores: Sequence[float],
    since: float,
    ids: Sequence[str],
    reader: Live | None = None,
) -> list[Prediction]:
    """What the log keeps of each instance; its latency is the request's, from its arrival to its scores.

    Args:
        since: when the request came (`time.perf_counter`).
        ids: of the predictions.
        reader: the model whose contract the rows were read by; this one if not given.
    """
    timestamp_us, latency_us = now_us(), round((time.perf_counter() - since) * 1e6)
    variant, ref, degraded = live.variant, live.ref, live.degraded
    key, time_column = (reader or live).key, (reader or live).time
    return [
        Prediction(
            name,
            timestamp_us,
            None if key is None or instance.get(key) is None else str(instance[key]),
            None if time_column is None else microseconds(instance.get(time_column)),
            variant,
            ref.version,
            ref.digest,
            dumps(instance),
            output,
            score,
            latency_us,
            degraded,
        )
        for name, instance, output, score in zip(ids, instances, told, scores, strict=True)
    ]


def answer(live: Live, each: Iterable[str]) -> bytes:
    """The body of an answer in the API's own protocol, each prediction being as `with_id` makes it."""
    return f'{{"predictions":[{",".join(each)}],{live.closing}'.encode()


def with_id(name: str, output: str) -> str:
    """What an instance is told, from what `outputs` says of it."""
    return f'{{"id":"{name}",{output[1:]}'


class _Own:
    """The API's own protocol: `{"instances": [{...}]}`."""

    def read(self, live: Live, body: bytes) -> list[dict[str, Any]]:
        return live.schema.instances(body)

    def write(self, live: Live, logged: Sequence[Prediction]) -> bytes:
        if are_of_several(logged):
            return answer_of_several(live, logged)
        return answer(live, [with_id(row.id, row.output) for row in logged])


OWN = _Own()


def are_of_several(logged: Sequence[Prediction]) -> bool:
    """Whether several models answered the rows of a request."""
    first = logged[0].variant
    return any(row.variant != first for row in logged)


def answer_of_several(live: Live, logged: Sequence[Prediction]) -> bytes:
    """As `answer`, where several models answered: each prediction names its own, the end names the request's."""
    own = {by: to_json({"model_version": by[0], "variant": by[1]}).decode()[1:] for by in set(map(_model_of, logged))}
    told = ",".join([f"{with_id(row.id, row.output)[:-1]},{own[_model_of(row)]}" for row in logged])
    closing = live.closing_degraded if any(row.degraded for row in logged) else live.closing
    return f'{{"predictions":[{told}],{closing}'.encode()


def _model_of(row: Prediction) -> tuple[str, str]:
    return row.model_version, row.variant
