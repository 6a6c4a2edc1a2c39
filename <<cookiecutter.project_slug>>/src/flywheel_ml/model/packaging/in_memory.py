"""Trains, evaluates and packages a table in one process, with the functions of the stages but without their files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from flywheel_ml.core.contract import Contract
from flywheel_ml.core.features import Feature
from flywheel_ml.core.params import Params
from flywheel_ml.data.split import describe_time_range, split
from flywheel_ml.model.evaluation import evaluate
from flywheel_ml.model.packaging import package
from flywheel_ml.model.training import comparison, train


def build_bundle(
    path: Path, table: pl.DataFrame, contract: Contract, params: Params, functions: Sequence[Feature] = ()
) -> Path:
    """Split a table, train, evaluate and package as the pipeline does; return `path`.

    Args:
        path: the bundle's folder, which must not exist.
        table: n_rows × contract columns.
        functions: derived features of the project.
    """
    parts = split(table, contract, params.split, None)
    fitted = train.train(parts["train"], contract, params, parts["validation"], features=functions)
    judged = {name: parts[name] for name in ("validation", "test")}
    pipelines = {"model": fitted.model, "linear": fitted.baseline}
    if fitted.sklearn_default is not None:
        pipelines["sklearn_default"] = fitted.sklearn_default
    evaluation = evaluate.evaluate(
        pipelines, judged, contract, params, fitted.prior, train.build_out_of_fold_table(fitted), functions
    )
    reports: dict[str, Any] = {
        "split": {
            name: {"rows": part.height, "sha256": "0" * 64, **describe_time_range(part, contract)}
            for name, part in parts.items()
        },
        "trained": {
            "estimator": fitted.selection.winner.estimator,
            "prior": fitted.prior,
            "comparison": comparison.compare(contract.task, fitted.out_of_fold),
        },
        "evaluation": evaluation,
    }
    described = path.with_name("contract.yaml")
    described.parent.mkdir(parents=True, exist_ok=True)
    described.write_text(yaml.safe_dump(contract.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
    package.pack(path, described, fitted.model, parts, params, reports, functions)
    return path
