"""Finds the periods of an experiment in the audit log: spans of time in which no share changed."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from flywheel_ml.flows.rollout import EXPERIMENT
from flywheel_ml.prediction_log.rows import CHALLENGER
from flywheel_ml.utils.errors import ProjectError


class Arm(NamedTuple):
    """A version in an experiment; without a share it is a shadow."""

    version: str
    digest: str
    share: float | None

    @property
    def name(self) -> str:
        """Its name among several challengers, as in the log's `assigned_variant`."""
        return f"{CHALLENGER}:{self.version}"


class Period(NamedTuple):
    """Rows with since ≤ time < until, in microseconds since 1970, were divided among these versions."""

    since_us: int
    until_us: int
    arms: tuple[Arm, ...]

    @property
    def is_shadow(self) -> bool:
        """Whether the champion answered all rows, and a shadow scored them."""
        return self.arms[0].share is None

    @property
    def shares(self) -> list[float]:
        """Share of the champion, then of each arm."""
        shares = [arm.share or 0.0 for arm in self.arms]
        return [max(0.0, 1 - sum(shares)), *shares]


class Timeline(NamedTuple):
    """An experiment: the champion, and the periods, oldest first.

    Attributes:
        champion: version and digest.
        champion_digest: likewise.
        periods: at least one.
        is_running: whether it has not ended.
    """

    champion: str
    champion_digest: str
    periods: tuple[Period, ...]
    is_running: bool

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The versions, with their last shares."""
        return self.periods[-1].arms


def find_timeline(entries: Sequence[Mapping[str, Any]], now_us: int, since_us: int = 0, settle_us: int = 0) -> Timeline:
    """Find the running experiment, or else the last one.

    An experiment is the same as long as champion and versions are, so a canary is one, from its shadow to its last
    share.

    Args:
        entries: of the audit log, oldest first.
        now_us: the end of a running one.
        since_us: earlier rows are left out.
        settle_us: rows of this time after a change are left out, because servers still follow.

    Raises:
        ProjectError: there was no experiment, or none since then.
    """
    facts = [entry.get(EXPERIMENT) for entry in entries]
    last = max((at for at, one in enumerate(facts) if one), default=None)
    if last is None:
        raise ProjectError(
            "there has been no experiment; start one: make experiment SHARE=0.1, or VERSIONS='5 7' SHARES='0.2 0.2'"
        )
    first = last
    while first and facts[first - 1] and _identify(facts[first - 1]) == _identify(facts[last]):
        first -= 1
    ends = [*(_to_us(entry["at"]) for entry in entries[first + 1 :]), now_us]
    periods = []
    for at in range(first, last + 1):
        found = _build_period(facts[at], max(_to_us(entries[at]["at"]) + settle_us, since_us), ends[at - first])
        if found.since_us < found.until_us:
            periods.append(found)
    champion = facts[last]["champion"]  # type: ignore[index]
    if not periods:
        raise ProjectError(
            f"the experiment with version {_join(facts[last])} has no rows yet: it began at {entries[first]['at']}; "
            "try again in some seconds, or give an earlier SINCE="
        )
    return Timeline(champion["version"], champion["digest"], tuple(periods), is_running=last == len(entries) - 1)


def _identify(experiment: Any) -> tuple[str, frozenset[str]]:
    return experiment["champion"]["digest"], frozenset(arm["digest"] for arm in experiment["arms"])


def _build_period(experiment: Any, since_us: int, until_us: int) -> Period:
    arms = (Arm(arm["version"], arm["digest"], arm["share"]) for arm in experiment["arms"])
    return Period(since_us, until_us, tuple(sorted(arms, key=lambda arm: arm.digest)))


def _join(experiment: Any) -> str:
    return ", ".join(arm["version"] for arm in experiment["arms"])


def _to_us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e6)
