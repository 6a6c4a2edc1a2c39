"""Renders the model card (Mitchell et al., 2019) from the results of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.metrics import LOSS
from flywheel_ml.data.card_templates import render_template
from flywheel_ml.utils.formatting import METRIC_NAMES, overlap

CARD = Path(__file__).with_name("model_card.md.jinja")

_SLICE_MEASURES: dict[Task, tuple[str, ...]] = {
    "binary": ("prevalence", "roc_auc", "calibration_error"),
    "multiclass": ("accuracy", "log_loss", "calibration_error"),
    "regression": ("mae", "bias", "coverage"),
}
"""Measures shown for a slice, by task."""
_COLUMN_TITLES = {
    "test": "model",
    "sklearn_default": "gradient boosting by default",
    "linear": "linear baseline",
    "prior": "always the average",
    "validation": "model on validation",
}


def render_card(
    facts: Mapping[str, Any],
    contract: Contract,
    split: Mapping[str, Any],
    trained: Mapping[str, Any] | None = None,
    background: int = 0,
    templates: Path | None = None,
) -> str:
    """Render the card as Markdown.

    Args:
        facts: the manifest's fields.
        split: rows and time span of each part, as the split stage reported them.
        trained: the report of the train stage.
        background: number of training rows in the bundle.
        templates: folder that may hold the project's `model_card.md.jinja`; otherwise the library's template is used.
    """
    decided = trained or {}
    target = contract.target
    known = [
        f"- estimator: {facts['estimator'].replace('_', ' ')}, served as ONNX",
        *_describe_tuning(facts),
        f"- inputs: {len(contract.inputs)} columns of contract.yaml"
        + (f", and derived: {', '.join(f'`{name}`' for name in facts['derived'])}" if facts["derived"] else ""),
        *_describe_free_text(decided.get("text"), contract),
        *_describe_selection(decided.get("selection"), contract),
        *_describe_calibration(decided.get("calibration")),
        *(
            f"- {name}: {part['rows']:,} rows" + (f", {part['first']} to {part['last']}" if "first" in part else "")
            for name, part in ((name, split[name]) for name in ("train", "validation", "test"))
        ),
        *_describe_decision(facts),
        f"- largest difference between ONNX and scikit-learn on the test rows: {facts['parity']:.2g}"
        + ("" if facts["classes"] else " standard deviations"),
    ]
    limits = [
        f"- Intended for rows that satisfy `contract.yaml`; measured on the {split['test']['rows']:,} test rows only.",
        "- Categories not seen in training are accepted and treated as unknown.",
        "- Slices marked *too small* were not evaluated; no claim is made about them.",
        *_describe_duplicates(split["test"], contract),
        *_describe_background(background, contract),
        "- The data card describes the data and its source.",
    ]
    return render_template(
        CARD,
        templates,
        name=facts["name"],
        target=target.name,
        description=target.description or "no description",
        facts="\n".join(known),
        measures="\n".join(_build_metrics_table(facts["metrics"])),
        slices="\n".join(_build_slices_table(facts["slices"], facts["task"])),
        limits="\n".join(limits),
    )


def _describe_duplicates(test: Mapping[str, Any], contract: Contract) -> list[str]:
    if not test.get("in_train"):
        return []
    note = overlap(test["in_train"], test["rows"], contract.time is not None)
    return [f"- {note}: unless inputs are few and coarse, a model that memorises rows looks good on them."]


def _describe_tuning(facts: Mapping[str, Any]) -> list[str]:
    tuned = facts["tuned"]
    if not tuned:
        return []
    chosen = ", ".join(
        f"`{name}` {value:.4g}" if isinstance(value, float) else f"`{name}` {value}"
        for name, value in tuned["parameters"].items()
    )
    return [
        f"- tuned in {tuned['trials']} trials: {chosen or 'params.yaml was best'}; "
        f"{METRIC_NAMES[LOSS[facts['task']]]} on the validation rows {tuned['loss']:.4g}, "
        f"with params.yaml {tuned['loss_untuned']:.4g}"
    ]


def _describe_free_text(words: Mapping[str, Any] | None, contract: Contract) -> list[str]:
    if words is None:
        return []
    names = ", ".join(f"`{column.name}`" for column in contract.inputs if column.free_text)
    measure = "mean squared error" if contract.task == "regression" else "log loss"
    return [
        f"- free text ({names}): {'used' if words['kept'] else 'left out'}, {measure} on the validation rows "
        f"{words['with_text']:.4g} with its words, {words['without_text']:.4g} without"
    ]


def _describe_selection(selection: Mapping[str, Any] | None, contract: Contract) -> list[str]:
    if selection is None:
        return []
    measure = "mean squared error" if contract.task == "regression" else "log loss"
    dropped = f"; too costly for this table: {', '.join(selection['too_costly'])}" if selection["too_costly"] else ""
    if len(selection["candidates"]) == 1:
        return []
    return [
        f"- chosen by {selection['method']}: the simplest candidate within one standard error of the best{dropped}",
        "",
        f"| candidate | {measure} | above the best | standard error | fits |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {_format_candidate(score['name'], selection['chosen'])} | {_format_number(score['loss'])} | "
            f"{_format_number(score['difference'])} | {_format_number(score['standard_error'])} | {score['fits']} |"
            for score in selection["candidates"]
        ),
        "",
    ]


def _format_candidate(name: str, chosen: str) -> str:
    return f"**{name.replace('_', ' ')}**" if name == chosen else name.replace("_", " ")


def _describe_calibration(calibration: Mapping[str, Any] | None) -> list[str]:
    if calibration is None or not calibration["losses"]:
        return []
    losses = ", ".join(f"{method} {_format_number(loss)}" for method, loss in calibration["losses"].items())
    return [f"- probabilities calibrated by: {calibration['method']} (out-of-fold log loss: {losses})"]


def _describe_threshold(facts: Mapping[str, Any]) -> str:
    if facts["metrics"]["validation"].get("prevalence") in (0.0, 1.0):
        return "from the costs alone, because all rows that choose it have the same class"
    return "cheapest on out-of-fold rows"


def _describe_decision(facts: Mapping[str, Any]) -> list[str]:
    labels = [f"`{_format_label(label)}`" for label in facts["classes"]]
    if facts["task"] == "binary":
        return [
            f"- classes: {' and '.join(labels)}; the second one is positive",
            f"- decision threshold: {facts['threshold']:.4f} ({_describe_threshold(facts)})",
        ]
    if facts["task"] == "multiclass":
        return [f"- classes: {', '.join(labels)}; the prediction is the most probable one"]
    return [f"- interval: ± {facts['half_width']:.4g} around each value, by conformal prediction on out-of-fold rows"]


def _describe_background(background: int, contract: Contract) -> list[str]:
    if not background:
        return ["- The bundle contains no rows of data, so its predictions cannot be explained."]
    personal = [f"`{column.name}`" for column in contract.inputs if column.personal]
    note = f" among these columns personal data: {', '.join(personal)}" if personal else " no column declared personal"
    return [
        f"- The bundle contains {background} training rows (`background.json`), which explanations compare a row with:"
        f" all inputs,{note}, and no other columns. Anyone who has the bundle can read them."
    ]


def _format_label(label: object) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _build_metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    columns = [name for name in _COLUMN_TITLES if name in metrics]
    rows = [name for name in METRIC_NAMES if any(name in metrics[column] for column in columns)]
    return [
        f"| measure | {' | '.join(_COLUMN_TITLES[column] for column in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(
            f"| {METRIC_NAMES[row]} | {' | '.join(_format_number(metrics[column].get(row)) for column in columns)} |"
            for row in rows
        ),
    ]


def _build_slices_table(slices: list[Mapping[str, Any]], task: Task) -> list[str]:
    if not slices:
        return ["No slices are listed in params.yaml (`evaluate.slices`)."]
    shown = _SLICE_MEASURES[task]
    return [
        f"| column | value | rows | {' | '.join(METRIC_NAMES[name] for name in shown)} |",
        f"| --- | --- | ---: |{' ---: |' * len(shown)}",
        *(
            f"| {part['column']} | {_escape_cell(part['value'])} | {part['rows']:,} | "
            + (
                " | ".join(_format_number(part["metrics"].get(name)) for name in shown)
                if part["enough"]
                else "*too small*" + " |" * (len(shown) - 1)
            )
            + " |"
            for part in slices
        ),
    ]


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
