"""One self-contained HTML page about a window: no scripts, nothing fetched, readable on a phone and on paper."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.profile import PREDICTION
from flywheel_ml.monitoring import plots
from flywheel_ml.monitoring.drift import Comparison
from flywheel_ml.monitoring.quality import SliceQuality
from flywheel_ml.monitoring.result import Result, Volume
from flywheel_ml.monitoring.window import Window
from flywheel_ml.utils import words

TEMPLATE = "report.html.jinja"
MAX_PLOTS = 24
MAX_ROWS = 300
MAX_SLICE_ROWS = 12

Write = Callable[[float], str]
"""How a value of a column is said."""


class Card(NamedTuple):
    """One drifted column: what it is, what changed, and its picture."""

    name: str
    description: str
    changes: tuple[str, ...]
    plot: Markup


class Row(NamedTuple):
    """One comparison as a line of the table."""

    name: str
    aspect: str
    change: str
    statistic: str
    effect: str
    p: str
    drifted: bool
    meter: Markup


class Measured(NamedTuple):
    """One measure as a line of the table."""

    name: str
    value: str
    interval: str
    reference: str
    change: str


class Sliced(NamedTuple):
    """One slice as a line of the table."""

    value: str
    rows: str
    enough: bool
    area: str
    reference: str
    change: str
    worse: bool


def html(result: Result, window: Window, bundle: Bundle) -> str:
    """The page.

    Args:
        result: what was found.
        window: the rows it was found in, for the pictures.
        bundle: the model, for the reference and the meaning of columns.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": words.percent, "number": words.number, "minute": words.minute}
    reference, contract = bundle.profile, bundle.contract
    drifted, answer = [*result.drift.drifted][:MAX_PLOTS], _answer(bundle.contract)
    return environment.get_template(TEMPLATE).render(
        result=result,
        title=f"{result.model.name}, model {result.model.version}",
        period=words.span(result.volume.first, result.volume.last),
        tiles=list(_tiles(result)),
        cards=[_card(name, result, window, bundle) for name in drifted],
        more_cards=len(result.drift.drifted) - len(drifted),
        rows=[_row(comparison, contract) for comparison in result.drift.comparisons[:MAX_ROWS]],
        more_rows=max(0, len(result.drift.comparisons) - MAX_ROWS),
        prediction=plots.both_widths(
            lambda width: plots.distribution(
                reference.columns[PREDICTION],
                window.profile.columns[PREDICTION],
                "predicted probability" if bundle.contract.classes else "predicted value",
                answer,
                (width, 170),
            )
        )
        if window.profile.columns[PREDICTION].present
        else "",
        prediction_change=next(
            (_change(c, answer) for c in result.drift.comparisons if c.column == PREDICTION and c.aspect == "values"),
            "",
        ),
        measures=[*_measures(result)],
        interval=_interval(result),
        roc=plots.roc(result.quality.curves["roc"]) if result.quality.curves.get("roc") else "",
        calibration=plots.calibration(
            result.quality.curves["calibration"],
            "share of positives" if bundle.manifest.task == "binary" else "share of right answers",
        )
        if result.quality.curves.get("calibration")
        else "",
        predicted=plots.predicted(result.quality.curves["predicted"]) if result.quality.curves.get("predicted") else "",
        judged=_title(result.quality.judged),
        answers="predicted probability of the class answered"
        if bundle.manifest.task == "multiclass"
        else f"predicted {'probability of ' if bundle.manifest.task == 'binary' else ''}{result.model.target}",
        slices=_slices(result.quality.slices, result.quality.judged),
        volume=plots.both_widths(lambda width: plots.volume(result.volume, width)) if result.volume.buckets else "",
        volume_step=_step(result.volume),
        facts=list(_facts(result, bundle)),
    )


def _tiles(result: Result) -> Iterator[tuple[str, str, str]]:
    volume, quality = result.volume, result.quality
    pace = f"{words.number(volume.rows_per_hour)} an hour" if volume.rows_per_hour is not None else "no times known"
    yield "Rows", f"{volume.rows:,}", pace
    tested = {c.column for c in result.drift.comparisons if c.column != PREDICTION}
    if tested:
        answers = "answers moved, too" if result.drift.prediction_drifted else "answers did not move"
        yield "Inputs that drifted", f"{len(result.drift.drifted)} of {len(tested)}", answers
    else:
        yield "Inputs that drifted", "–", "not compared"
    name = quality.judged
    if judged := quality.measures.get(name):
        known = (
            f"{words.measure(name, judged.reference)} when tested" if judged.reference is not None else "no reference"
        )
        yield _title(name), words.measure(name, judged.value), known
    else:
        yield _title(name), "–", "no labels to measure it on"
    yield "Labelled", words.percent(quality.coverage), f"{quality.labelled:,} rows"
    broken = len(result.violations)
    yield "Contract violations", str(broken) if broken else "none", "rules broken" if broken else "all rows keep it"


def _facts(result: Result, bundle: Bundle) -> Iterator[tuple[str, str]]:
    volume = result.volume
    yield "Window", result.source
    if volume.first is not None and volume.last is not None:
        yield "From, to", f"{words.minute(volume.first)}, {words.minute(volume.last)} ({volume.clock})"
    yield "Rows", f"{volume.rows:,}, of which a fallback answered {volume.degraded:,}"
    versions = ", ".join(f"{name} ({rows:,} rows)" for name, rows in result.versions.items())
    yield "Model versions", versions or "none"
    yield (
        "Compared with",
        f"{result.model.reference_rows:,} reference rows of {result.model.name}, {result.model.estimator}",
    )
    yield "Predicts", f"{result.model.target}: {bundle.contract.target.description or 'no description'}"
    if bundle.manifest.threshold is not None:
        yield "Decision threshold", words.number(bundle.manifest.threshold)
    yield "Bundle", f"sha256 {result.model.digest[:16]}…"
    yield "Judged", f"{words.minute(result.at)} UTC"


def _card(name: str, result: Result, window: Window, bundle: Bundle) -> Card:
    unit, description = _meaning(name, bundle.contract)
    found = [c for c in result.drift.comparisons if c.column == name and c.drifted]
    write = _written(unit)
    plot = plots.distribution(bundle.profile.columns[name], window.profile.columns[name], _shown(name), write)
    return Card(_shown(name), description, tuple(_sentence(c, write) for c in found), plot)


def _row(comparison: Comparison, contract: Contract) -> Row:
    unit, _ = _meaning(comparison.column, contract)
    return Row(
        name=_shown(comparison.column),
        aspect=_aspect(comparison),
        change=_change(comparison, _answer(contract) if comparison.column == PREDICTION else _written(unit)),
        statistic=comparison.statistic,
        effect=f"{comparison.effect:.3f}",
        p=words.p_value(comparison.adjusted),
        drifted=comparison.drifted,
        meter=plots.meter(comparison.effect, comparison.min_effect),
    )


def _interval(result: Result) -> Markup:
    name, limit = result.quality.judged, result.quality.limit
    judged = result.quality.measures.get(name)
    if judged is None or judged.low is None or judged.reference is None or limit is None:
        return Markup("")
    return plots.both_widths(lambda width: plots.interval(name, judged, limit, width))


def _answer(contract: Contract) -> Write:
    return words.percent if contract.classes else _written(contract.target.unit)


def _written(unit: str) -> Write:
    return lambda value: words.number(value, unit)


def _sentence(comparison: Comparison, write: Write) -> str:
    change = _change(comparison, write)
    if comparison.aspect != "values":
        return f"{_aspect(comparison)}: {change}".capitalize()
    return change[0].upper() + change[1:] if comparison.statistic == "KS distance" else change


def _change(comparison: Comparison, write: Write) -> str:
    before, after = comparison.reference, comparison.window
    if comparison.statistic == "total variation":
        return ", ".join(f"{name} {_moved(before[name], after[name])}" for name in before)
    if comparison.statistic == "rate difference":
        return _moved(before["rate"], after["rate"])
    share = f"rows up to {write(before['split'])}: {_moved(before['share up to split'], after['share up to split'])}"
    if before["lower quartile"] == before["upper quartile"]:
        return share
    return f"median {write(before['median'])} → {write(after['median'])}; {share}"


def _moved(before: float, after: float) -> str:
    return f"{words.percent(before)} → {words.percent(after)}"


def _aspect(comparison: Comparison) -> str:
    return {"values": "values", "missing": "missing values", "unseen": "values unknown to the reference"}[
        comparison.aspect
    ]


def _shown(name: str) -> str:
    if name == PREDICTION:
        return "the model’s answer"
    return name.removesuffix(".hour") + " (hour of day)" if name.endswith(".hour") else name


def _meaning(name: str, contract: Contract) -> tuple[str, str]:
    for column in contract.columns:
        if column.name == name:
            return ("words" if column.free_text else column.unit), column.description
        if f"{column.name}.elapsed" == name:
            return "d", f"days from {column.name} to the row's time"
        if f"{column.name}.hour" == name:
            return "h", f"{column.description}, hour of day" if column.description else "hour of day"
    return "", ""


def _measures(result: Result) -> Iterator[Measured]:
    measures = result.quality.measures
    for name, shown in words.MEASURES.items():
        if name in measures:
            found = measures[name]
            interval = ""
            if found.low is not None and found.high is not None:
                interval = f"{words.measure(name, found.low)} – {words.measure(name, found.high)}"
            yield Measured(
                name=shown,
                value=words.measure(name, found.value),
                interval=interval,
                reference=words.measure(name, found.reference) if found.reference is not None else "–",
                change=words.change(name, found.reference, found.value) if found.reference is not None else "–",
            )


def _title(measure: str) -> str:
    name = words.MEASURES[measure]
    return name[0].upper() + name[1:]


def _slices(found: tuple[SliceQuality, ...], judged: str) -> list[dict[str, Any]]:
    tables: dict[str, list[Sliced]] = {}
    for part in found:
        area, before = part.metrics.get(judged), part.reference
        tables.setdefault(part.column, []).append(
            Sliced(
                value=part.value,
                rows=f"{part.rows:,}",
                enough=part.enough,
                area=words.measure(judged, area) if area is not None else "–",
                reference=words.measure(judged, before) if before is not None else "–",
                change=words.change(judged, before, area) if area is not None and before is not None else "–",
                worse=part.worse,
            )
        )
    return [
        {"column": column, "rows": rows[:MAX_SLICE_ROWS], "more": max(0, len(rows) - MAX_SLICE_ROWS)}
        for column, rows in tables.items()
    ]


def _step(volume: Volume) -> str:
    named = {0: "", 1: "hour", 24: "day", 7 * 24: "week", 28 * 24: "four weeks"}
    return named.get(volume.bucket_hours, f"{volume.bucket_hours} hours")
