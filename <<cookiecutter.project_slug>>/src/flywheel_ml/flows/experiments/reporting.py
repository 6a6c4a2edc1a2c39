"""Reports an experiment: reads the log, and writes JSON, Markdown and a page."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flywheel_ml.core import bundle, paths, serving_folder
from flywheel_ml.core.business_metrics import MODEL_LOSS, find_name_fault
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.params import Params
from flywheel_ml.core.settings import Settings
from flywheel_ml.experiments.log_counts import ExperimentReader
from flywheel_ml.experiments.losses import choose_loss
from flywheel_ml.flows.experiments.building import Design, build_report
from flywheel_ml.flows.experiments.page import render_page
from flywheel_ml.flows.experiments.reading import EvidenceReader, Question
from flywheel_ml.flows.experiments.result import Direction, ExperimentReport
from flywheel_ml.flows.experiments.text import render_markdown
from flywheel_ml.flows.experiments.timeline import Timeline, find_timeline
from flywheel_ml.flows.rollout import read_audit
from flywheel_ml.prediction_log import now_us
from flywheel_ml.utils.config_model import suggest
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import canonical_json, replacing

FOLDER = paths.REPORTS / "experiments"


class ReportOptions(NamedTuple):
    """What a report is about.

    Attributes:
        metric: `loss`, or a business metric.
        since_us: earlier rows are left out.
        better: which direction is better; None: lower for the loss, higher for a business metric.
        effect: the planned difference, in units of the metric; None: a tenth of the champion's standard deviation.
        missing_as_zero: whether an answered row without a value of the business metric has the value 0.
    """

    metric: str = MODEL_LOSS
    since_us: int = 0
    better: Direction | None = None
    effect: float | None = None
    missing_as_zero: bool = False


def report_experiment(settings: Settings, params: Params, options: ReportOptions) -> ExperimentReport:
    """Report the running experiment, or the last one, and write the report to `FOLDER`.

    Raises:
        ConfigError: an option is impossible.
        ProjectError: there has been no experiment.
    """
    check_metric(options.metric, settings)
    if options.metric == MODEL_LOSS and options.missing_as_zero:
        raise ConfigError("ZERO=1 (--missing-as-zero) is for a business metric; name it: METRIC=revenue")
    if options.effect is not None and not 0 < options.effect < float("inf"):
        raise ConfigError(f"EFFECT is {options.effect:g}; give a difference above 0, in units of the metric")
    settle_us = round(params.canary.settle_seconds * 1e6)
    timeline = find_timeline(read_audit(settings.serving_folder), now_us(), options.since_us, settle_us)
    contract = load_contract(settings.serving_folder, timeline)
    question = Question(
        options.metric,
        choose_loss(contract.task, params.canary),
        options.missing_as_zero,
        params.evaluate.slices,
        round(params.canary.min_latency_ms * 1e3),
    )
    log = ExperimentReader(settings.prediction_log, label_horizon_us=params.monitor.label_horizon_us)
    reader = EvidenceReader(log, timeline, contract, question)
    better = options.better or ("lower" if options.metric == MODEL_LOSS else "higher")
    found = build_report(contract.name, timeline, reader, question, Design(better, options.effect), datetime.now(UTC))
    write_report(found)
    return found


def check_metric(metric: str, settings: Settings) -> None:
    """Raise `ConfigError` unless the log has values of a business metric."""
    if metric == MODEL_LOSS:
        return
    if fault := find_name_fault(metric):
        raise ConfigError(f"METRIC: {fault}")
    known = ExperimentReader(settings.prediction_log).count_metrics()
    if metric not in known:
        hint = suggest(metric, [*known, MODEL_LOSS]) if known else "none has arrived so far"
        raise ConfigError(
            f"METRIC: the log has no value of '{metric}'; {hint}; send it to /feedback, or import it: "
            f"make labels FILE= METRIC={metric}"
        )


def load_contract(folder: Path, timeline: Timeline) -> Contract:
    """Load the contract of the champion; of the project if its bundle is gone."""
    path = serving_folder.find_bundle(folder, timeline.champion_digest)
    return Contract.load(path / bundle.CONTRACT, accept_renamed=True) if path else Contract.load(paths.CONTRACT)


def write_report(found: ExperimentReport) -> None:
    """Write the report of a metric."""
    content = found.model_dump(mode="json")
    texts = {
        "json": canonical_json(content, indent=2) + "\n",
        "md": render_markdown(found),
        "html": render_page(found),
    }
    for suffix, text in texts.items():
        with replacing(FOLDER / f"{found.metric}.{suffix}") as part:
            part.write_text(text, encoding="utf-8")
