"""Stage 5: what the model is worth on rows that it has not seen, overall and by slice, beside its baselines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import polars as pl

from .. import metrics, stage
from ..contract import Columns, Contract
from ..data import tables
from ..errors import ConfigError, IntegrityError
from ..features import Featurizer
from ..files import read_json, sha256_file, write_json
from ..params import EvaluateParams, Params
from . import estimators
from .train import read_split

IMPORTANCE_ROWS = 4_000


def score(pipeline: Any, columns: Columns, contract: Contract) -> np.ndarray:
    """Probability of the positive class, float64 [n_rows]."""
    frame = estimators.to_frame(Featurizer(contract).encode(columns))
    probabilities: np.ndarray = pipeline.predict_proba(frame)[:, -1]
    return probabilities


def by_slice(
    rows: pl.DataFrame, labels: np.ndarray, scores: np.ndarray, threshold: float, params: EvaluateParams
) -> list[dict[str, Any]]:
    """A metric table per value of each column of `params.slices`, the largest slice first; small ones are marked."""
    found = []
    for column in params.slices:
        values = rows[column].cast(pl.String).fill_null("(missing)").to_numpy()
        names, counts = np.unique(values.astype(str), return_counts=True)
        for at in np.argsort(-counts, kind="stable"):
            member = values == names[at]
            found.append(
                {
                    "column": column,
                    "value": str(names[at]),
                    "rows": int(counts[at]),
                    "enough": bool(counts[at] >= params.min_slice_rows),
                    "metrics": metrics.binary(labels[member], scores[member], threshold, **params.costs.model_dump()),
                }
            )
    return found


def importance(
    pipeline: Any, columns: Columns, labels: np.ndarray, contract: Contract, seed: int
) -> list[dict[str, Any]]:
    """Permutation importance (Breiman, 2001): ROC AUC lost when one contract column is shuffled, largest first."""
    from sklearn.metrics import roc_auc_score

    spread = np.linspace(0, len(labels) - 1, min(len(labels), IMPORTANCE_ROWS)).astype(np.intp)
    sample = {name: values[spread] for name, values in columns.items()}
    whole = roc_auc_score(labels[spread], score(pipeline, sample, contract))
    order = np.random.default_rng(seed).permutation(len(spread))
    losses = {
        name: whole - roc_auc_score(labels[spread], score(pipeline, {**sample, name: values[order]}, contract))
        for name, values in sample.items()
    }
    return [{"column": name, "loss": float(loss)} for name, loss in sorted(losses.items(), key=lambda item: -item[1])]


def evaluate(
    pipelines: Mapping[str, Any], parts: Mapping[str, pl.DataFrame], contract: Contract, params: Params, prior: float
) -> dict[str, Any]:
    """Threshold, metrics of the model and its baselines, slices, curves and importance.

    Args:
        pipelines: `model` and `linear`, fitted.
        parts: `validation`, where the threshold is chosen, and `test`, where everything is measured.
        prior: share of positive training labels, which the trivial baseline always answers.
    """
    for column in params.evaluate.slices:
        if contract[column].type not in ("string", "boolean"):
            raise ConfigError(
                f"params.yaml: evaluate.slices: '{column}' is {contract[column].type}; slices need string or boolean"
            )
    costs = params.evaluate.costs.model_dump()
    columns = {name: tables.to_columns(part, contract.inputs) for name, part in parts.items()}
    labels = {name: part[contract.target.name].to_numpy() for name, part in parts.items()}
    scores = {name: score(pipelines["model"], columns[name], contract) for name in parts}
    threshold = metrics.choose_threshold(labels["validation"], scores["validation"], **costs)
    answers = {
        "linear": score(pipelines["linear"], columns["test"], contract),
        "trivial": np.full(len(labels["test"]), prior),
    }
    return {
        "threshold": threshold,
        "metrics": {
            **{name: metrics.binary(labels[name], scores[name], threshold, **costs) for name in parts},
            **{name: metrics.binary(labels["test"], answer, threshold, **costs) for name, answer in answers.items()},
        },
        "slices": by_slice(parts["test"], labels["test"], scores["test"], threshold, params.evaluate),
        "curves": metrics.curves(labels["test"], scores["test"]),
        "importance": importance(pipelines["model"], columns["test"], labels["test"], contract, params.seed),
    }


def load(path: Path, hashes: Mapping[str, str]) -> Any:
    """A pipeline that the train stage wrote, unpickled only if its bytes are the ones it wrote.

    Raises:
        IntegrityError: the bytes differ.
    """
    if sha256_file(path) != hashes[path.name]:
        raise IntegrityError(f"{path} is not the file that the train stage wrote; run `dvc repro --force train`")
    return joblib.load(path)


def main() -> None:
    """Read models and parts, judge, write metrics, plots and the full evaluation."""
    contract, params = Contract.load(stage.CONTRACT), Params.load(stage.PARAMS)
    split, trained = read_json(stage.REPORTS / "split.json"), read_json(stage.REPORTS / "train.json")
    pipelines = {
        "model": load(stage.MODEL, trained["sha256"]),
        "linear": load(stage.BASELINE, trained["sha256"]),
    }
    parts = {name: read_split(name, split) for name in ("validation", "test")}
    found = evaluate(pipelines, parts, contract, params, trained["prior"])
    for name, points in (*found.pop("curves").items(), ("importance", found.pop("importance"))):
        write_json(stage.PLOTS / f"{name}.json", points)
    write_json(stage.REPORTS / "metrics.json", found["metrics"])
    write_json(stage.REPORTS / "evaluation.json", found)


if __name__ == "__main__":
    stage.run(main)
