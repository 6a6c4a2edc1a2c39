"""Builds the content of an experiment's report from what was counted."""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from flywheel_ml.core.business_metrics import MODEL_LOSS
from flywheel_ml.experiments.comparison import ALPHA, Stratum, add_sums, average_means, choose_effect, compare
from flywheel_ml.experiments.log_counts import CHAMPION
from flywheel_ml.experiments.planning import Period as PlannedPeriod
from flywheel_ml.experiments.planning import plan_sample_size
from flywheel_ml.experiments.sequential import MIN_STRATUM_ROWS, Interval, LossSums, Number
from flywheel_ml.flows.experiments.guarding import guard_arm, guard_split
from flywheel_ml.flows.experiments.reading import EvidenceReader, PeriodEvidence, Question, take_last
from flywheel_ml.flows.experiments.result import (
    ArmResult,
    Difference,
    Direction,
    ExperimentReport,
    GuardResult,
    Look,
    SliceDifference,
    Verdict,
)
from flywheel_ml.flows.experiments.tally import Looks
from flywheel_ml.flows.experiments.timeline import Arm, Timeline
from flywheel_ml.utils.formatting import number, rows

DAY_US = 86_400_000_000
MIN_SLICE_ROWS = 200
"""Of champion and challenger together; smaller slices are left out."""


class Design(NamedTuple):
    """How an experiment is judged: which direction is better, and the planned effect, None to estimate it."""

    better: Direction
    effect: float | None


def build_report(
    name: str, timeline: Timeline, reader: EvidenceReader, question: Question, design: Design, at: datetime
) -> ExperimentReport:
    """Read all periods, and build the report.

    Args:
        name: of the model.
        timeline: of the experiment.
        reader: of its evidence.
        question: what is measured.
        design: how it is judged.
        at: the time of the report.
    """
    evidence = [reader.read(period) for period in timeline.periods]
    champion = add_sums(*(one.sums[CHAMPION] for one in evidence))
    effect: Number = design.effect if design.effect is not None else choose_effect(champion)
    split = tuple(guard_split(evidence))
    slices = {key for one in evidence for arm in timeline.arms for key in one.slices.get(arm.name, {})}
    judge = _Judge(timeline, evidence, reader.looks, question, design, effect, split, len(slices))
    arms = tuple(judge.build_arm(arm) for arm in timeline.arms)
    counts = [one.counts[CHAMPION] for one in evidence]
    known = float(np.asarray(champion.rows)[-1])
    return ExperimentReport(
        at=at,
        name=name,
        metric=question.metric,
        loss=question.loss if question.metric == MODEL_LOSS else None,
        better=design.better,
        champion=timeline.champion,
        champion_digest=timeline.champion_digest,
        since=_to_time(timeline.periods[0].since_us),
        until=_to_time(timeline.periods[-1].until_us),
        is_running=timeline.is_running,
        periods=len(timeline.periods),
        champion_rows=sum(one.rows for one in counts),
        champion_errors=sum(one.errors for one in counts),
        champion_labelled=int(known),
        alpha=ALPHA,
        arm_alpha=judge.alpha,
        slice_alpha=judge.slice_alpha,
        effect=float(np.broadcast_to(effect, champion.rows.shape)[-1]) if known else None,  # type: ignore[union-attr]
        effect_is_given=design.effect is not None,
        arms=arms,
        guards=split,
        notes=tuple(_list_notes(timeline, evidence, question)),
    )


class _Judge:
    """Judges the arms of an experiment, whose α is divided equally among them."""

    def __init__(
        self,
        timeline: Timeline,
        evidence: Sequence[PeriodEvidence],
        looks: Looks,
        question: Question,
        design: Design,
        effect: Number,
        split: Sequence[GuardResult],
        slices: int,
    ) -> None:
        self.alpha = ALPHA / len(timeline.arms)
        self.slice_alpha = self.alpha / slices if slices else None
        self._timeline, self._evidence, self._looks = timeline, evidence, looks
        self._question, self._design, self._split = question, design, split
        self._effect: np.ndarray = np.broadcast_to(np.asarray(effect, dtype=np.float64), (looks.count,))

    def build_arm(self, arm: Arm) -> ArmResult:
        """Build the result of one arm."""
        strata = list(self._list_strata(arm))
        found = compare(strata, self._effect, self.alpha)
        counted = [one.counts[arm.name] for one in self._evidence]
        champion_mean, mean = average_means([_take_last(one) for one in strata], float(self._effect[-1]))
        guards = tuple(guard_arm(self._evidence, arm.name, len(self._timeline.arms)))
        labelled = int(sum(float(np.asarray(one.challenger.rows)[-1]) for one in strata))
        difference = _find_difference(found, -1)
        verdict, reason = self._decide(arm, strata, difference, sum(one.rows for one in counted), guards)
        return ArmResult(
            version=arm.version,
            digest=arm.digest,
            share=arm.share,
            rows=sum(one.rows for one in counted),
            errors=sum(one.errors for one in counted),
            labelled=labelled,
            champion_mean=None if math.isnan(champion_mean) else champion_mean,
            mean=None if math.isnan(mean) else mean,
            difference=difference,
            verdict=verdict,
            reason=reason,
            looks=tuple(self._list_looks(strata, found)),
            guards=guards,
            slices=tuple(self._list_slices(arm)),
        )

    def _list_strata(self, arm: Arm) -> Iterator[Stratum]:
        for one in self._evidence:
            differences = one.differences.get(arm.name)
            if one.period.is_shadow and differences is None:
                continue  # A shadow's predictions had no effect on a business metric.
            yield Stratum(one.sums[CHAMPION], one.sums[arm.name], differences)

    def _list_looks(self, strata: Sequence[Stratum], found: Interval) -> Iterator[Look]:
        labelled = sum(np.asarray(one.champion.rows) + np.asarray(one.challenger.rows) for one in strata)
        if not strata:
            return
        for at in range(self._looks.count):
            yield Look(
                at=_to_time(self._looks.end_us(at)),
                labelled=int(labelled[at]),
                difference=_find_difference(found, at),
            )

    def _list_slices(self, arm: Arm) -> Iterator[SliceDifference]:
        keys = {key for one in self._evidence for key in one.slices.get(arm.name, {})}
        if self.slice_alpha is None:
            return
        for column, value in sorted(keys):
            strata = [
                Stratum(*(one.slices[name].get((column, value), LossSums()) for name in (CHAMPION, arm.name)))
                for one in self._evidence
                if not one.period.is_shadow
            ]
            champion = add_sums(*(one.champion for one in strata))
            challenger = add_sums(*(one.challenger for one in strata))
            if champion.rows + challenger.rows < MIN_SLICE_ROWS:
                continue
            found = compare(strata, float(self._effect[-1]), self.slice_alpha)
            yield SliceDifference(
                column=column,
                value=value,
                champion_rows=int(champion.rows),
                challenger_rows=int(challenger.rows),
                difference=_find_difference(Interval(*(np.atleast_1d(bound) for bound in found)), -1),
            )

    def _decide(
        self,
        arm: Arm,
        strata: Sequence[Stratum],
        difference: Difference,
        answered: int,
        guards: Sequence[GuardResult],
    ) -> tuple[Verdict, str]:
        if tripped := [one for one in self._split if one.tripped]:
            return "not valid", (
                f"{tripped[0].name}: {tripped[0].detail}; the versions got different kinds of rows, so nothing can be "
                "concluded until routing, logging and the senders of labels are checked"
            )
        if missing := self._find_missing(arm, strata, answered):
            return "no data", missing
        failing = next((f"; but {one.name}: {one.detail}" for one in guards if one.tripped), "")
        low, high = difference.low, difference.high
        if low is None or high is None:
            return "no data", (
                f"nothing can be concluded: champion and challenger need {MIN_STRATUM_ROWS} rows with a value each, in "
                "a period without a change of shares, and values that differ"
            )
        shown = f"the difference is {_signed(low)} to {_signed(high)}"
        if low > 0 or high < 0:
            is_better = (high < 0) == (self._design.better == "lower")
            return ("better" if is_better else "worse"), f"{shown}, which excludes 0{failing}"
        return (
            "undecided",
            f"nothing can be concluded yet: {shown}, which includes 0; {self._estimate(arm, strata)}{failing}",
        )

    def _find_missing(self, arm: Arm, strata: Sequence[Stratum], answered: int) -> str:
        """Return what is missing before anything can be measured; empty if nothing is."""
        metric = self._question.metric
        if arm.share is None and metric != MODEL_LOSS:
            return (
                f"a shadow answers nobody, so it has no effect on {metric}; give it a share: make experiment SHARE=0.1"
            )
        if not answered:
            return (
                f"no rows reached version {arm.version}; check that servers use this serving folder, and whether "
                "`make rollout` shows it as paused or rejected"
            )
        champion, challenger = (
            (
                sum(float(np.asarray(rows)[-1]) for rows in sums)
                for sums in zip(*((one.champion.rows, one.challenger.rows) for one in strata), strict=True)
            )
            if strata
            else (0.0, 0.0)
        )
        if min(champion, challenger) == 0:
            who = (
                "neither model has"
                if max(champion, challenger) == 0
                else ("the champion has no" if champion == 0 else f"version {arm.version} has no")
            )
            what = "labels" if metric == MODEL_LOSS else f"values of {metric}"
            command = "make labels FILE=" + ("" if metric == MODEL_LOSS else f" METRIC={metric}")
            return (
                f"{who} {what}{'' if who.endswith('no') else ' yet'}; send them to /feedback, or import them: {command}"
            )
        return ""

    def _estimate(self, arm: Arm, strata: Sequence[Stratum]) -> str:
        """Estimate what is still needed to find the planned effect."""
        effect = float(self._effect[-1])
        shown = f"a difference of {number(effect)}"
        champion, challenger = (
            add_sums(*(take_last(side) for side in sides))
            for sides in zip(*((one.champion, one.challenger) for one in strata), strict=True)
        )
        labelled = float(champion.rows + challenger.rows)
        span_us = self._timeline.periods[-1].until_us - self._timeline.periods[0].since_us
        share = self._find_pair_share(arm)
        variances = (_find_variance(champion), _find_variance(challenger))
        if share is None or not all(variances):
            return f"the plan is for {shown}"
        per_day = labelled / (span_us / DAY_US)
        size = plan_sample_size(
            effect, variances, [PlannedPeriod(share)], per_day, alpha=self.alpha, sequential_alpha=self.alpha / 2
        )
        left = size.quantile_80 - labelled
        if not math.isfinite(left) or left <= 0:
            return f"{shown} would probably have been found by now"
        days = left / per_day
        shown_days = "less than a day" if days < 1 else f"{days:,.0f} day{'s' if round(days) != 1 else ''}"
        return (
            f"to find {shown} with a power of 80%, about {rows(math.ceil(left))} more with a value are needed, "
            f"{shown_days} at the present rate"
        )

    def _find_pair_share(self, arm: Arm) -> float | None:
        period = self._timeline.periods[-1]
        if period.is_shadow:
            return 0.5
        champion = period.shares[0]
        return None if arm.share is None or not champion else arm.share / (arm.share + champion)


def _list_notes(timeline: Timeline, evidence: Sequence[PeriodEvidence], question: Question) -> Iterator[str]:
    if len(timeline.periods) > 1:
        yield f"Shares changed: the difference is estimated in each of {len(timeline.periods)} periods and combined."
    if any(one.by_entity for one in evidence):
        yield "Entities have several rows, so each entity counts once in each period, with the mean of its rows."
    if any(one.period.is_shadow for one in evidence) and question.metric == MODEL_LOSS:
        yield "A shadow is compared row by row, on the labelled rows that both models answered."
        if not all(one.period.is_shadow for one in evidence):
            yield "A canary with the comparison `paired` decides by its shadow alone; here, later shares count too."
    if question.missing_as_zero:
        yield f"A row without a value of {question.metric} counts as 0, also if its value has not arrived yet."
    elif question.metric != MODEL_LOSS:
        yield f"Only rows with a value of {question.metric} count; ZERO=1 counts the others as 0."


def _find_difference(found: Interval, at: int) -> Difference:
    estimate, low, high = (float(np.atleast_1d(bound)[at]) for bound in found)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Difference()
    return Difference(estimate=estimate, low=low, high=high)


def _take_last(stratum: Stratum) -> Stratum:
    differences = None if stratum.differences is None else take_last(stratum.differences)
    return Stratum(take_last(stratum.champion), take_last(stratum.challenger), differences)


def _find_variance(sums: LossSums) -> float:
    total = max(float(sums.rows), 1.0)
    return max(0.0, float(sums.squares) / total - (float(sums.total) / total) ** 2)


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def _to_time(timestamp_us: int) -> datetime:
    return datetime.fromtimestamp(timestamp_us / 1e6, tz=UTC)
