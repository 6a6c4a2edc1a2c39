"""Logged traffic of a canary: rows of champion and challenger with known losses, errors and latencies."""

from typing import NamedTuple

from flywheel_ml.prediction_log import (
    CHALLENGER,
    SHADOW,
    EntityOutcome,
    Outcome,
    Prediction,
    Row,
    derive_shadow_id,
    new_ids,
)

SECOND_US = 1_000_000


class Traffic(NamedTuple):
    """What happens in a span of the log.

    Attributes:
        champion, challenger: digests.
        since_us: time of the first row; one row a millisecond follows.
        rows: of both variants.
        worse: of 100 rows, how many the challenger has wrong and the champion right.
        better: of 100 rows, how many it is the other way round.
        failed: of 100 rows of the challenger, how many it does not answer.
        labelled: whether labels arrive.
        entities: how many different entities the rows have; 0 for one each.
        latency_us: of the challenger's requests; the champion's take 30 ms.
    """

    champion: str
    challenger: str
    since_us: int
    rows: int = 1000
    worse: int = 5
    better: int = 5
    failed: int = 0
    labelled: bool = True
    entities: int = 0
    latency_us: int = 30_000

    def shadow(self) -> list[Row]:
        """Rows of the champion, each with one of the shadow."""
        found: list[Row] = []
        for at, name in enumerate(new_ids(self.rows)):
            champion_is_right, challenger_is_right = self._judge(at)
            row = self._build(at, name, champion_is_right)
            other = self._build(at, derive_shadow_id(name), challenger_is_right)
            is_failed = at % 100 < self.failed
            found += [row, other._replace(variant=SHADOW, model_digest=self.challenger, degraded=is_failed)]
            found += self._label(at, name)
        return found

    def share(self, percent: int) -> list[Row]:
        """Rows of which the challenger gets some percent."""
        found: list[Row] = []
        taken = 0
        for at, name in enumerate(new_ids(self.rows)):
            champion_is_right, challenger_is_right = self._judge(at)
            if (at * 37) % 100 >= percent:
                found.append(self._build(at, name, champion_is_right))
            else:
                taken += 1
                row = self._build(at, name, challenger_is_right)._replace(latency_us=self.latency_us)
                if taken % 100 < self.failed:
                    found.append(row._replace(assigned_variant=CHALLENGER))
                else:
                    found.append(row._replace(variant=CHALLENGER, model_digest=self.challenger))
            found += self._label(at, name)
        return found

    def _judge(self, at: int) -> tuple[bool, bool]:
        place = (at * 61 + at // 100 * 7) % 100  # Independent of `share` and of failures.
        return place >= 20 + self.better, not (self.better <= place < 20 + self.better or place >= 100 - self.worse)

    def _build(self, at: int, name: str, is_right: bool) -> Prediction:
        answer = is_right == self._truth(at)
        output = '{"prediction":true}' if answer else '{"prediction":false}'
        made, score = self.since_us + at * 1000, 0.8 if answer else 0.2
        facts = ("champion", "1", self.champion, "{}", output, score, 30_000, False)
        return Prediction(name, made, self._entity(at), None, *facts)

    def _label(self, at: int, name: str) -> list[Row]:
        if not self.labelled:
            return []
        text, made = "true" if self._truth(at) else "false", self.since_us + at * 1000
        if self.entities:
            return [Outcome(name, made, text, made)]
        return [EntityOutcome(self._entity(at), made, text, made) if at % 2 else Outcome(name, made, text, made)]

    def _entity(self, at: int) -> str:
        return f"e{at % self.entities}" if self.entities else f"e{self.since_us}-{at}"

    @staticmethod
    def _truth(at: int) -> bool:
        return at % 3 == 0
