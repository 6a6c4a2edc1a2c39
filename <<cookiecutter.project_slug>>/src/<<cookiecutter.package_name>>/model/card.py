"""The model card (Mitchell et al., 2019), written from what the run measured."""

from collections.abc import Mapping
from typing import Any

from ..contract import Contract

_NAMES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision (PR AUC)",
    "log_loss": "log loss",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "prevalence": "share of positives",
    "mean_cost": "mean cost per row",
}
_COLUMNS = {
    "test": "model",
    "linear": "linear baseline",
    "trivial": "always the prior",
    "validation": "model on validation",
}


def text(facts: Mapping[str, Any], contract: Contract, split: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        facts: the manifest's fields.
        split: rows and time span of each part, as the split stage reported them.
    """
    target = contract.target
    lines = [
        f"# Model card: {facts['name']}",
        "",
        f"Predicts `{target.name}` ({target.description or 'no description'}).",
        "",
        f"- estimator: {facts['estimator'].replace('_', ' ')}, served as ONNX",
        f"- inputs: {len(contract.inputs)} columns of contract.yaml"
        + (f", and derived: {', '.join(f'`{name}`' for name in facts['derived'])}" if facts["derived"] else ""),
        *(
            f"- {name}: {part['rows']:,} rows, {part['first']} to {part['last']}"
            for name, part in ((name, split[name]) for name in ("train", "validation", "test"))
        ),
        f"- decision threshold: {facts['threshold']:.4f} (cheapest on the validation rows)",
        f"- largest difference between ONNX and scikit-learn on the test rows: {facts['parity']:.2g}",
        "",
        "## On the test rows",
        "",
        *_metrics(facts["metrics"]),
        "",
        "## By slice",
        "",
        *_slices(facts["slices"]),
        "",
        "## Use and limits",
        "",
        f"- Meant for rows that keep `contract.yaml`; measured on the {split['test']['rows']:,} test rows only.",
        "- Categories that training never saw are accepted and answered like an unknown one.",
        "- Slices marked *too small* were not judged; nothing is claimed of them.",
        "- What the data is and where it comes from: the data card.",
        "",
    ]
    return "\n".join(lines)


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    columns = [name for name in _COLUMNS if name in metrics]
    rows = [name for name in _NAMES if any(name in metrics[column] for column in columns)]
    return [
        f"| measure | {' | '.join(_COLUMNS[column] for column in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(f"| {_NAMES[row]} | {' | '.join(_number(metrics[column].get(row)) for column in columns)} |" for row in rows),
    ]


def _slices(slices: list[Mapping[str, Any]]) -> list[str]:
    if not slices:
        return ["No slices are listed in params.yaml (`evaluate.slices`)."]
    return [
        "| column | value | rows | share of positives | ROC AUC | calibration error |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {part['column']} | {_cell(part['value'])} | {part['rows']:,} | "
            f"{_judged(part['metrics']) if part['enough'] else '*too small* | | '} |"
            for part in slices
        ),
    ]


def _judged(metrics: Mapping[str, float]) -> str:
    return " | ".join(_number(metrics.get(name)) for name in ("prevalence", "roc_auc", "calibration_error"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
