"""Plans an experiment from what the log shows: sample size and days, of a fixed-horizon and of a sequential test."""

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from flywheel_ml.core import bundle, paths, serving_folder
from flywheel_ml.core.business_metrics import MODEL_LOSS, find_name_fault
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.comparison import ALPHA
from flywheel_ml.experiments.log_counts import CHAMPION, ExperimentReader
from flywheel_ml.experiments.log_evidence import StepSpan, read_losses
from flywheel_ml.experiments.losses import LossAccumulator, choose_loss
from flywheel_ml.experiments.planning import Period, SampleSize, plan_sample_size, rate_variances
from flywheel_ml.experiments.sequential import LossSums
from flywheel_ml.flows.experiments.text import LOSS_NAMES
from flywheel_ml.prediction_log import now_us
from flywheel_ml.utils import config_model
from flywheel_ml.utils.errors import ConfigError, ProjectError
from flywheel_ml.utils.formatting import number, percent, rows

DEFAULT_SHARE = 0.1
MIN_ROWS = 50
"""With fewer rows of the champion, its variance is not known."""
DAY_US = 86_400_000_000


class PlanOptions(NamedTuple):
    """What is planned; options that are None are measured in the log.

    Attributes:
        effect: smallest difference that matters, in units of the metric.
        metric: `loss`, or a business metric.
        shares: of the challengers; empty: of the running experiment, else one of `DEFAULT_SHARE`.
        days: of the log that are measured.
        rate: of a 0/1 metric.
        deviation: standard deviation of one row.
        rows_per_day: with a value.
        power: probability to find the effect.
    """

    effect: float
    metric: str = MODEL_LOSS
    shares: tuple[float, ...] = ()
    days: int = 28
    rate: float | None = None
    deviation: float | None = None
    rows_per_day: float | None = None
    power: float = 0.8


class Baseline(config_model.StrictModel):
    """The champion's rows: mean (None if unknown) and standard deviation of one, and how many come a day."""

    mean: float | None
    deviation: float
    rows_per_day: float
    source: str


class ArmPlan(config_model.StrictModel):
    """One challenger: its share, and rows with a value of all versions, and days, until it is decided.

    An infinite number is None: the test does not decide within four times the fixed-horizon sample.
    """

    share: float
    fixed: float
    median: float | None
    quantile_80: float | None
    days: tuple[float, float | None, float | None]
    power_at_fixed: float
    power_at_twice: float


class ExperimentPlan(config_model.StrictModel):
    """A planned experiment; `alpha` is the error probability of all differences together."""

    metric: str
    effect: float
    alpha: float
    power: float
    champion_share: float
    baseline: Baseline
    arms: tuple[ArmPlan, ...]


def plan_experiment(settings: Settings, params: Params, options: PlanOptions) -> ExperimentPlan:
    """Plan an experiment.

    Raises:
        ConfigError: an option is impossible, or it is needed because the log has no rows.
    """
    _check(options)
    shares = options.shares or _find_shares(settings) or (DEFAULT_SHARE,)
    champion_share = 1 - math.fsum(shares)
    if champion_share <= 0:
        raise ConfigError(
            f"SHARES: {', '.join(percent(share) for share in shares)} leave nothing for the champion, with which they "
            "are compared; give smaller ones"
        )
    baseline, variances = _measure(settings, params, options)
    arms = tuple(_plan_arm(share, champion_share, len(shares), variances, baseline, options) for share in shares)
    return ExperimentPlan(
        metric=options.metric,
        effect=options.effect,
        alpha=ALPHA,
        power=options.power,
        champion_share=champion_share,
        baseline=baseline,
        arms=arms,
    )


def describe(found: ExperimentPlan) -> Iterator[tuple[str, str]]:
    """Yield the facts of a plan, each with its name."""
    yield "metric", LOSS_NAMES.get(found.metric, found.metric)
    base = found.baseline
    mean = "" if base.mean is None else f"mean {number(base.mean)}, "
    yield "baseline", f"{mean}standard deviation of one row {number(base.deviation)} ({base.source})"
    relative = "" if not base.mean else f", {percent(abs(found.effect / base.mean))} of the mean"
    yield "effect", f"{number(found.effect)}{relative}, {number(found.effect / base.deviation)} standard deviations"
    shares = ", ".join(percent(arm.share) for arm in found.arms)
    yield "shares", f"{shares}; champion {percent(found.champion_share)}"
    yield "rows", f"{base.rows_per_day:,.0f} with a value a day, of all versions"


def build_rows(found: ExperimentPlan) -> Iterator[tuple[str, str, str]]:
    """Yield test, rows and days of each arm; arms with equal shares once."""
    for arm in dict.fromkeys(found.arms):
        several = f", share {percent(arm.share)}" if len(set(found.arms)) > 1 else ""
        names = ("one look at the end", "sequential, median", f"sequential, {percent(0.8)} of experiments")
        for name, count, days in zip(names, (arm.fixed, arm.median, arm.quantile_80), arm.days, strict=True):
            if count is None or days is None:
                yield name + several, "more than 4 times as many", ""
            else:
                yield name + several, f"{math.ceil(count):,}", f"{days:,.1f}"


def describe_method(found: ExperimentPlan) -> str:
    """State the error rates of a plan."""
    several = f", divided among {len(found.arms)} versions" if len(found.arms) > 1 else ""
    first = found.arms[0]
    return (
        f"α is {found.alpha:g}{several}, two-sided; power {percent(found.power)} with one look at the end. The "
        f"sequential test may be looked at any time. It finds the effect within that sample in "
        f"{percent(first.power_at_fixed)} of experiments, and within twice as many rows in "
        f"{percent(first.power_at_twice)}."
    )


def _check(options: PlanOptions) -> None:
    for name, value, fits, remedy in (
        ("EFFECT", options.effect, 0 < options.effect < math.inf, "give a difference above 0, in units of the metric"),
        ("RATE", options.rate, options.rate is None or 0 < options.rate < 1, "give a rate between 0 and 1"),
        (
            "DEVIATION",
            options.deviation,
            options.deviation is None or 0 < options.deviation < math.inf,
            "give one above 0",
        ),
        (
            "PER_DAY",
            options.rows_per_day,
            options.rows_per_day is None or 0 < options.rows_per_day < math.inf,
            "give a number above 0",
        ),
        ("POWER", options.power, 0 < options.power < 1, "give a probability between 0 and 1, such as 0.8"),
    ):
        if not fits:
            raise ConfigError(f"{name} is {value:g}; {remedy}")
    if odd := [share for share in options.shares if not 0 < share < 1]:
        raise ConfigError(f"SHARES: {odd[0]:g} is not a share; give numbers above 0 and below 1")
    if options.rate is not None and options.deviation is not None:
        raise ConfigError("RATE and DEVIATION both give the variance; give one of them")
    if options.metric != MODEL_LOSS and (fault := find_name_fault(options.metric)):
        raise ConfigError(f"METRIC: {fault}")


def _find_shares(settings: Settings) -> tuple[float, ...]:
    try:
        return tuple(one.share for one in serving_folder.read_routing(settings.serving_folder).challengers)
    except ProjectError:
        return ()


def _measure(settings: Settings, params: Params, options: PlanOptions) -> tuple[Baseline, tuple[float, float]]:
    """Measure the champion's rows, as far as options do not give them; and the variances of both models."""
    sums, valued_per_day = LossSums(), None
    if (options.rate is None and options.deviation is None) or options.rows_per_day is None:
        sums, valued_per_day = _read_log(settings, params, options)
    is_measured = options.rate is None and options.deviation is None
    mean, source = options.rate, "given"
    if options.rate is not None:
        variances = rate_variances(options.rate, min(options.effect, 1 - options.rate))
    elif options.deviation is not None:
        variances = (options.deviation**2,) * 2
    elif sums.rows < MIN_ROWS:
        what = "labels" if options.metric == MODEL_LOSS else f"values of {options.metric}"
        raise ConfigError(
            f"the champion has {float(sums.rows):,.0f} {what} in the last {options.days} days, and {MIN_ROWS} are "
            "needed to know its variance; import them (make labels), or give DEVIATION= of one row, or RATE= of a 0/1 "
            "metric"
        )
    else:
        mean = float(sums.total / sums.rows)
        variances = (max(float(sums.squares / sums.rows) - mean**2, 0.0),) * 2
        source = f"{rows(int(sums.rows))} of the champion, last {options.days} days"
    if is_measured and not variances[0]:
        raise ConfigError(f"all values of {options.metric} are equal; give DEVIATION= of one row")
    per_day = options.rows_per_day or valued_per_day
    if not per_day:
        raise ConfigError(
            f"no row with a value came in the last {options.days} days, so the rows a day are unknown; give PER_DAY="
        )
    return Baseline(mean=mean, deviation=math.sqrt(variances[0]), rows_per_day=per_day, source=source), variances


def _read_log(settings: Settings, params: Params, options: PlanOptions) -> tuple[LossSums, float | None]:
    """Read the champion's values, and how many rows with one came a day, of all versions."""
    reader = ExperimentReader(settings.prediction_log, label_horizon_us=params.monitor.label_horizon_us)
    until = now_us()
    since = until - options.days * DAY_US
    by_entity = reader.has_repeated_entities(since, until)
    losses, everyone, first = LossAccumulator(by_entity), LossAccumulator(by_entity), until
    for timestamp, value, (variant, entity) in _read_values(reader, settings, params, options, since, until):
        first = min(first, timestamp)
        everyone.add(entity, value)
        if variant == CHAMPION:
            losses.add(entity, value)
    count = float(everyone.sum_up().rows)
    span = max(until - first, int(timedelta(hours=1) / timedelta(microseconds=1)))
    return losses.sum_up(), count / (span / DAY_US) if count else None


def _read_values(
    reader: ExperimentReader, settings: Settings, params: Params, options: PlanOptions, since: int, until: int
) -> Iterator[tuple[int, float, tuple[str, str | None]]]:
    """Yield time, value, and variant with entity of the rows with a value."""
    if options.metric != MODEL_LOSS:
        for row, value in reader.read_values(options.metric, since, until):
            yield row.timestamp_us, value, (row.variant, row.entity_id)
        return
    contract = _load_contract(settings)
    span = StepSpan(0, since, until)
    for logged, value in read_losses(reader, span, None, None, contract, choose_loss(contract.task, params.canary)):
        row = logged.prediction
        yield row.timestamp_us, value, (row.variant, row.entity_id)


def _load_contract(settings: Settings) -> Contract:
    try:
        routing = serving_folder.read_routing(settings.serving_folder)
    except ProjectError:
        routing = None
    if routing is None or routing.champion is None:
        return Contract.load(paths.CONTRACT)
    path = serving_folder.bundle_folder(settings.serving_folder, routing.champion)
    return Contract.load(path / bundle.CONTRACT, accept_renamed=True)


def _plan_arm(
    share: float,
    champion_share: float,
    count: int,
    variances: tuple[float, float],
    baseline: Baseline,
    options: PlanOptions,
) -> ArmPlan:
    pair = share + champion_share
    alpha = ALPHA / count
    size: SampleSize = plan_sample_size(
        options.effect,
        variances,
        [Period(share / pair)],
        baseline.rows_per_day * pair,
        alpha=alpha,
        power=options.power,
        sequential_alpha=alpha / 2,
    )
    fixed, median, late = (
        None if math.isinf(one) else one / pair for one in (size.fixed, size.median, size.quantile_80)
    )
    median_days, late_days = (None if math.isinf(one) else one for one in size.days[2:])
    return ArmPlan(
        share=share,
        fixed=fixed or 0.0,
        median=median,
        quantile_80=late,
        days=(size.days[0], median_days, late_days),
        power_at_fixed=size.power_at_fixed,
        power_at_twice=size.power_at_twice,
    )
