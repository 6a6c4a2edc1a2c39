"""Renders the HTML report of a window: self-contained, without scripts, readable on phones and in print."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.profile import PREDICTION, Profile
from flywheel_ml.monitoring import plots, report_quality
from flywheel_ml.monitoring.drift import DriftTest
from flywheel_ml.monitoring.reference import Reference
from flywheel_ml.monitoring.result import Result, Volume
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils import formatting
from flywheel_ml.utils.html import open_templates

TEMPLATE = "report.html.jinja"
MAX_PLOTS = 24
MAX_ROWS = 300

Formatter = Callable[[float], str]
"""Formats a value of a column."""


class Card(NamedTuple):
    """One drifted column: its description, what changed, and its plot."""

    name: str
    description: str
    changes: tuple[str, ...]
    plot: Markup


class TestRow(NamedTuple):
    """One drift test as a row of the table."""

    name: str
    aspect: str
    change: str
    statistic: str
    effect: str
    p: str
    drifted: bool
    meter: Markup


def render_html(result: Result, window: Window, bundle: Bundle, reference: Reference | None = None) -> str:
    """Render the page.

    Args:
        result: the result of monitoring.
        window: the window, for the plots.
        bundle: the model, for the descriptions of columns.
        reference: the rows that the window was compared with; the test rows by default.
    """
    environment = open_templates(Path(__file__).parent)
    environment.filters |= {"percent": formatting.percent, "number": formatting.number, "minute": formatting.minute}
    before, contract = (reference or Reference.of_test_rows(bundle)).profile, bundle.contract
    drifted, answer = [*result.drift.drifted][:MAX_PLOTS], _prediction_formatter(bundle.contract)
    return environment.get_template(TEMPLATE).render(
        result=result,
        title=f"{result.model.name}, model {result.model.version}",
        period=formatting.span(result.volume.first, result.volume.last),
        tiles=list(_build_tiles(result)),
        cards=[_build_card(name, result, window, before, contract) for name in drifted],
        more_cards=len(result.drift.drifted) - len(drifted),
        rows=[_build_test_row(comparison, contract) for comparison in result.drift.comparisons[:MAX_ROWS]],
        more_rows=max(0, len(result.drift.comparisons) - MAX_ROWS),
        prediction=plots.draw_both_widths(
            lambda width: plots.draw_distribution(
                before.columns[PREDICTION],
                window.profile.columns[PREDICTION],
                "predicted probability" if bundle.contract.classes else "predicted value",
                answer,
                (width, 170),
            )
        )
        if window.profile.columns[PREDICTION].present
        else "",
        prediction_change=next(
            (
                _describe_change(c, answer)
                for c in result.drift.comparisons
                if c.column == PREDICTION and c.aspect == "values"
            ),
            "",
        ),
        measures=[*report_quality.build_metric_rows(result.quality)],
        arrival=[*report_quality.describe_arrival(result.quality)],
        variants=[*report_quality.build_variant_rows(result.quality)],
        estimates=[*report_quality.build_estimate_rows(result.quality)],
        interval=_draw_interval(result),
        roc=plots.draw_roc(result.quality.curves["roc"]) if result.quality.curves.get("roc") else "",
        calibration=plots.draw_calibration(
            result.quality.curves["calibration"],
            "share of positives" if bundle.manifest.task == "binary" else "share of right answers",
        )
        if result.quality.curves.get("calibration")
        else "",
        predicted=plots.draw_predictions(result.quality.curves["predicted"])
        if result.quality.curves.get("predicted")
        else "",
        judged=report_quality.title_of_metric(result.quality.judged),
        answers="predicted probability of the class answered"
        if bundle.manifest.task == "multiclass"
        else f"predicted {'probability of ' if bundle.manifest.task == 'binary' else ''}{result.model.target}",
        slices=report_quality.build_slice_tables(result.quality.slices, result.quality.judged),
        volume=plots.draw_both_widths(lambda width: plots.draw_volume(result.volume, width))
        if result.volume.buckets
        else "",
        volume_step=_name_bucket(result.volume),
        facts=list(_build_facts(result, bundle)),
    )


def _build_tiles(result: Result) -> Iterator[tuple[str, str, str]]:
    volume, quality = result.volume, result.quality
    pace = (
        f"{formatting.number(volume.rows_per_hour)} an hour" if volume.rows_per_hour is not None else "no times known"
    )
    yield "Rows", f"{volume.rows:,}", pace
    tested = {c.column for c in result.drift.comparisons if c.column != PREDICTION}
    if tested:
        answers = "predictions changed too" if result.drift.prediction_drifted else "predictions did not change"
        yield "Inputs that drifted", f"{len(result.drift.drifted)} of {len(tested)}", answers
    else:
        yield "Inputs that drifted", "–", "not compared"
    name = quality.judged
    if judged := quality.measures.get(name):
        known = (
            f"{formatting.metric_value(name, judged.reference)} when tested"
            if judged.reference is not None
            else "no reference"
        )
        yield report_quality.title_of_metric(name), formatting.metric_value(name, judged.value), known
    else:
        yield report_quality.title_of_metric(name), "–", "no labels yet"
    yield "Labelled", formatting.percent(quality.coverage), f"{quality.labelled:,} rows"
    broken = len(result.violations)
    yield "Contract violations", str(broken) if broken else "none", "rules broken" if broken else "all rows conform"


def _build_facts(result: Result, bundle: Bundle) -> Iterator[tuple[str, str]]:
    volume = result.volume
    yield "Window", result.source
    if volume.first is not None and volume.last is not None:
        yield "From, to", f"{formatting.minute(volume.first)}, {formatting.minute(volume.last)} ({volume.clock})"
    yield "Rows", f"{volume.rows:,}, of which a fallback answered {volume.degraded:,}"
    versions = ", ".join(f"{name} ({rows:,} rows)" for name, rows in result.versions.items())
    yield "Model versions", versions or "none"
    yield (
        "Compared with",
        f"{result.reference.rows:,} rows: {result.reference.description}",
    )
    yield (
        "Model",
        f"{result.model.name}, {result.model.estimator}, tested on {formatting.rows(result.model.reference_rows)}",
    )
    yield "Predicts", f"{result.model.target}: {bundle.contract.target.description or 'no description'}"
    if bundle.manifest.threshold is not None:
        yield "Decision threshold", formatting.number(bundle.manifest.threshold)
    yield "Bundle", f"sha256 {result.model.digest[:16]}…"
    yield "Evaluated", f"{formatting.minute(result.at)} UTC"


def _build_card(name: str, result: Result, window: Window, before: Profile, contract: Contract) -> Card:
    unit, description = _describe_column(name, contract)
    found = [c for c in result.drift.comparisons if c.column == name and c.drifted]
    write = _unit_formatter(unit)
    plot = plots.draw_distribution(before.columns[name], window.profile.columns[name], _display_name(name), write)
    return Card(_display_name(name), description, tuple(_describe_test(c, write) for c in found), plot)


def _build_test_row(comparison: DriftTest, contract: Contract) -> TestRow:
    unit, _ = _describe_column(comparison.column, contract)
    return TestRow(
        name=_display_name(comparison.column),
        aspect=_name_aspect(comparison),
        change=_describe_change(
            comparison, _prediction_formatter(contract) if comparison.column == PREDICTION else _unit_formatter(unit)
        ),
        statistic=comparison.statistic,
        effect=f"{comparison.effect:.3f}",
        p=formatting.p_value(comparison.adjusted),
        drifted=comparison.drifted,
        meter=plots.draw_meter(comparison.effect, comparison.min_effect),
    )


def _draw_interval(result: Result) -> Markup:
    name, limit = result.quality.judged, result.quality.limit
    judged = result.quality.measures.get(name)
    if judged is None or judged.low is None or judged.reference is None or limit is None:
        return Markup("")
    return plots.draw_both_widths(lambda width: plots.draw_interval(name, judged, limit, width))


def _prediction_formatter(contract: Contract) -> Formatter:
    return formatting.percent if contract.classes else _unit_formatter(contract.target.unit)


def _unit_formatter(unit: str) -> Formatter:
    return lambda value: formatting.number(value, unit)


def _describe_test(comparison: DriftTest, write: Formatter) -> str:
    change = _describe_change(comparison, write)
    if comparison.aspect != "values":
        return f"{_name_aspect(comparison)}: {change}".capitalize()
    return change[0].upper() + change[1:] if comparison.statistic == "KS distance" else change


def _describe_change(comparison: DriftTest, write: Formatter) -> str:
    before, after = comparison.reference, comparison.window
    if comparison.statistic == "total variation":
        return ", ".join(f"{name} {_format_change(before[name], after[name])}" for name in before)
    if comparison.statistic == "rate difference":
        return _format_change(before["rate"], after["rate"])
    shares = _format_change(before["share up to split"], after["share up to split"])
    share = f"rows up to {write(before['split'])}: {shares}"
    if before["lower quartile"] == before["upper quartile"]:
        return share
    return f"median {write(before['median'])} → {write(after['median'])}; {share}"


def _format_change(before: float, after: float) -> str:
    return f"{formatting.percent(before)} → {formatting.percent(after)}"


def _name_aspect(comparison: DriftTest) -> str:
    return {"values": "values", "missing": "missing values", "unseen": "values unknown to the reference"}[
        comparison.aspect
    ]


def _display_name(name: str) -> str:
    if name == PREDICTION:
        return "the model’s answer"
    return name.removesuffix(".hour") + " (hour of day)" if name.endswith(".hour") else name


def _describe_column(name: str, contract: Contract) -> tuple[str, str]:
    for column in contract.columns:
        if column.name == name:
            return ("words" if column.free_text else column.unit), column.description
        if f"{column.name}.elapsed" == name:
            return "d", f"days from {column.name} to the row's time"
        if f"{column.name}.hour" == name:
            return "h", f"{column.description}, hour of day" if column.description else "hour of day"
    return "", ""


def _name_bucket(volume: Volume) -> str:
    named = {0: "", 1: "hour", 24: "day", 7 * 24: "week", 28 * 24: "four weeks"}
    return named.get(volume.bucket_hours, f"{volume.bucket_hours} hours")
