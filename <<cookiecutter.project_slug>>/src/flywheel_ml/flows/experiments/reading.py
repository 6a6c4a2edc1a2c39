"""Reads what an experiment's report needs from the prediction log: counts, and sums of a metric, for each arm."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flywheel_ml.core.business_metrics import MODEL_LOSS
from flywheel_ml.core.contract import Contract
from flywheel_ml.experiments.evidence import Loss
from flywheel_ml.experiments.log_counts import CHAMPION, ExperimentReader, VariantCounts
from flywheel_ml.experiments.log_evidence import Models, StepSpan, read_losses, read_pairs
from flywheel_ml.experiments.sequential import LossSums
from flywheel_ml.flows.experiments.tally import Looks, SlicedTally, SliceNames, Tally
from flywheel_ml.flows.experiments.timeline import Period, Timeline
from flywheel_ml.prediction_log import CHALLENGER, Prediction
from flywheel_ml.utils.errors import ConfigError

LOOKS = 60


class Question(NamedTuple):
    """What a report is about.

    Attributes:
        metric: `loss`, or a business metric.
        loss: the model's loss that is compared.
        missing_as_zero: whether an answered row without a value of the business metric has the value 0.
        slices: columns by whose values rows are sliced.
        min_latency_us: requests that are faster count as this fast.
    """

    metric: str
    loss: Loss
    missing_as_zero: bool = False
    slices: Sequence[str] = ()
    min_latency_us: int = 0


class PeriodEvidence(NamedTuple):
    """What was logged in a period.

    Attributes:
        period: the period.
        counts: name of an arm, or `CHAMPION` → its counts.
        sums: name → sums of the metric, cumulated for each look; for a shadow of its rows that are paired.
        differences: name of a shadow → sums of its value minus the champion's.
        slices: name → slice → sums of the metric in the whole period.
        by_entity: whether entities were counted instead of rows.
    """

    period: Period
    counts: dict[str, VariantCounts]
    sums: dict[str, LossSums]
    differences: dict[str, LossSums]
    slices: dict[str, dict[tuple[str, str], LossSums]]
    by_entity: bool


class EvidenceReader:
    """Reads an experiment period by period; only labelled rows are read one by one, the database counts the others.

    Args:
        reader: of the log.
        timeline: of the experiment.
        contract: of the champion.
        question: what is measured.
    """

    def __init__(self, reader: ExperimentReader, timeline: Timeline, contract: Contract, question: Question) -> None:
        self._reader, self._timeline, self._contract, self._question = reader, timeline, contract, question
        self.looks = Looks(timeline.periods[0].since_us, timeline.periods[-1].until_us, LOOKS)
        self._names = SliceNames(question.slices)

    def read(self, period: Period) -> PeriodEvidence:
        """Read one period.

        Raises:
            ConfigError: entities have several rows, and missing values are to count as 0.
        """
        by_entity = self._reader.has_repeated_entities(period.since_us, period.until_us)
        if by_entity and self._question.missing_as_zero:
            raise ConfigError(
                "ZERO=1 (--missing-as-zero) needs one row for each entity, and entities have several; send a value of "
                f"0 for the predictions without any {self._question.metric}"
            )
        names = (CHAMPION, *(arm.name for arm in period.arms))
        tallies = {name: SlicedTally(self.looks.count, by_entity) for name in names}
        differences: dict[str, Tally] = {}
        if not period.is_shadow:
            self._add_answers(period, tallies)
        elif self._question.metric == MODEL_LOSS:
            differences[period.arms[0].name] = Tally(self.looks.count, by_entity)
            self._add_pairs(period, tallies, differences[period.arms[0].name])
        if self._question.missing_as_zero and not period.is_shadow:
            self._add_zeros(period, tallies)
        return PeriodEvidence(
            period,
            self._count(period, by_entity),
            {name: tally.sum_up() for name, tally in tallies.items()},
            {name: tally.sum_up() for name, tally in differences.items()},
            {
                name: {key: take_last(one.sum_up()) for key, one in tally.slices.items()}
                for name, tally in tallies.items()
            },
            by_entity,
        )

    def _find_owners(self, period: Period) -> dict[tuple[str, str], str]:
        """Return variant and digest → name of an arm, or `CHAMPION`."""
        arms = {(CHALLENGER, arm.digest): arm.name for arm in period.arms}
        return {(CHAMPION, self._timeline.champion_digest): CHAMPION, **arms}

    def _add_pairs(self, period: Period, tallies: Mapping[str, SlicedTally], differences: Tally) -> None:
        (arm,) = period.arms
        models = Models(self._timeline.champion_digest, arm.digest, self._contract)
        span = StepSpan(0, period.since_us, period.until_us)
        for row, of_champion, of_shadow in read_pairs(self._reader, span, models, self._question.loss):
            look, slices = self.looks.find(row.timestamp_us), self._names.find(row.inputs)
            differences.add(look, of_shadow - of_champion, row.entity_id)
            for name, value in ((CHAMPION, of_champion), (arm.name, of_shadow)):
                tallies[name].add(look, value, row.entity_id)
                tallies[name].add_to_slices(slices, value, row.entity_id)

    def _add_answers(self, period: Period, tallies: Mapping[str, SlicedTally]) -> None:
        owners = self._find_owners(period)
        for row, value in self._read_answers(period):
            if (owner := owners.get((row.variant, row.model_digest or ""))) is not None:
                tallies[owner].add(self.looks.find(row.timestamp_us), value, row.entity_id)
                tallies[owner].add_to_slices(self._names.find(row.inputs), value, row.entity_id)

    def _read_answers(self, period: Period) -> Iterator[tuple[Prediction, float]]:
        if self._question.metric != MODEL_LOSS:
            yield from self._reader.read_values(self._question.metric, period.since_us, period.until_us)
            return
        span = StepSpan(0, period.since_us, period.until_us)
        for row, value in read_losses(self._reader, span, None, None, self._contract, self._question.loss):
            yield row.prediction, value

    def _add_zeros(self, period: Period, tallies: Mapping[str, Tally]) -> None:
        """Count answered rows without a value; the rows with one have been added."""
        owners = self._find_owners(period)
        valued = {name: np.diff(tally.sum_up().rows, prepend=0.0) for name, tally in tallies.items()}
        counts = self._reader.count_answers(period.since_us, period.until_us, self.looks.since_us, self.looks.width_us)
        for (variant, digest, look), rows in counts.items():
            if (owner := owners.get((variant, digest))) is not None:
                at = min(max(look, 0), self.looks.count - 1)
                tallies[owner].add_zeros(at, max(0, rows - int(valued[owner][at])))

    def _count(self, period: Period, by_entity: bool) -> dict[str, VariantCounts]:
        span = (period.since_us, period.until_us)
        if period.is_shadow:
            (arm,) = period.arms
            found = self._reader.count_variants(*span, by_entity=False)
            shadow = self._reader.count_shadow(*span, arm.digest)
            return {CHAMPION: found.get(CHAMPION, VariantCounts()), arm.name: shadow}
        several = len(period.arms) > 1
        found = self._reader.count_variants(*span, by_entity, self._question.min_latency_us, by_version=several)
        names = {CHAMPION: CHAMPION, **{arm.name: arm.name if several else CHALLENGER for arm in period.arms}}
        return {name: found.get(counted, VariantCounts()) for name, counted in names.items()}


def take_last(sums: LossSums) -> LossSums:
    """Return the sums at the last look."""
    return LossSums(*(float(np.asarray(values)[-1]) for values in sums))
