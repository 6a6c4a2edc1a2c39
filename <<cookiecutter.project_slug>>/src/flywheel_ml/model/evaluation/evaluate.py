"""Stage 5: evaluates the model and its baselines on unseen rows, overall and by slice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import polars as pl

from flywheel_ml.core import metrics, paths
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.features import Feature, Featurizer
from flywheel_ml.core.metrics import DecisionRule
from flywheel_ml.core.params import EvaluateParams, Params
from flywheel_ml.core.project import Project
from flywheel_ml.data import tables
from flywheel_ml.model.evaluation.ablation import measure_ablation
from flywheel_ml.model.pipelines import estimators
from flywheel_ml.model.training import tune
from flywheel_ml.model.training.selection import read_sample_weights
from flywheel_ml.model.training.train import read_split
from flywheel_ml.utils.errors import ConfigError, IntegrityError
from flywheel_ml.utils.files import read_json, sha256_file, write_json

IMPORTANCE_ROWS = 4_000
AGING_SPANS = 8
MAX_CELLS = 4_000_000
"""Rows × columns scored per call: with a thousand columns each call of a pipeline takes 30 ms."""


def predict(pipeline: Any, columns: Columns, contract: Contract, features: Sequence[Feature] = ()) -> np.ndarray:
    """Predict with a pipeline; float64 probabilities [n_rows, n_classes], or values [n_rows, 1]."""
    return _predict(pipeline, columns, Featurizer(contract, features), contract)


def _predict(pipeline: Any, columns: Columns, featurizer: Featurizer, contract: Contract) -> np.ndarray:
    return estimators.predict(pipeline, estimators.to_frame(featurizer.encode(columns)), contract.task)


def evaluate_slices(
    rows: pl.DataFrame,
    contract: Contract,
    truth: np.ndarray,
    output: np.ndarray,
    decision: DecisionRule | None,
    params: EvaluateParams,
    weights: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Compute metrics per value of each column of `params.slices` and `params.groups`, largest slice first.

    Small slices are marked.

    With more than two classes, each class is also a slice, whose accuracy is the recall of the class.
    """
    found = []
    classes = [contract.target.name] if contract.task == "multiclass" else []
    for column in dict.fromkeys((*params.slices, *params.groups, *classes)):
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
                    "metrics": metrics.compute_metrics(
                        contract.task,
                        truth[member],
                        output[member],
                        decision,
                        None if weights is None else weights[member],
                    ),
                }
            )
    return found


def compute_importance(
    pipeline: Any,
    columns: Columns,
    truth: np.ndarray,
    contract: Contract,
    seed: int,
    weights: np.ndarray | None = None,
    features: Sequence[Feature] = (),
) -> list[dict[str, Any]]:
    """Compute permutation importance (Breiman, 2001): the loss added by shuffling each column, largest first.

    The loss is log loss for classes, root mean squared error for numbers.
    """
    spread = np.linspace(0, len(truth) - 1, min(len(truth), IMPORTANCE_ROWS)).astype(np.intp)
    sample = {name: values[spread] for name, values in columns.items()}

    featurizer, n_rows, names = Featurizer(contract, features), len(spread), list(sample)
    counted = None if weights is None else weights[spread]

    def loss(answers: np.ndarray) -> float:
        return metrics.compute_loss(contract.task, truth[spread], answers, counted)

    whole = loss(_predict(pipeline, sample, featurizer, contract))
    order = np.random.default_rng(seed).permutation(n_rows)
    losses = {}
    at_once = max(1, MAX_CELLS // (n_rows * len(names)))
    for first in range(0, len(names), at_once):
        shuffled = names[first : first + at_once]
        # Stack one copy of the sample per column, in which that column is shuffled.
        stacked = {name: np.tile(values, len(shuffled)) for name, values in sample.items()}
        for at, name in enumerate(shuffled):
            stacked[name][at * n_rows : (at + 1) * n_rows] = sample[name][order]
        answers = _predict(pipeline, stacked, featurizer, contract)
        for at, name in enumerate(shuffled):
            losses[name] = loss(answers[at * n_rows : (at + 1) * n_rows]) - whole
    return [{"column": name, "loss": found} for name, found in sorted(losses.items(), key=lambda item: -item[1])]


def evaluate(
    pipelines: Mapping[str, Any],
    parts: Mapping[str, pl.DataFrame],
    contract: Contract,
    params: Params,
    prior: Sequence[float],
    out_of_fold: pl.DataFrame,
    features: Sequence[Feature] = (),
) -> dict[str, Any]:
    """Compute threshold or interval, metrics of model and baselines, slices, curves and importance.

    Args:
        pipelines: fitted `model` and `linear`, and `sklearn_default` if requested.
        parts: `validation` and `test` rows, on which everything is measured.
        prior: class shares or mean of the training rows, which the prior baseline always predicts.
        out_of_fold: rows that determine the threshold or the interval width; see `train.build_out_of_fold_table`.
        features: the project's own.
    """
    for key, column in (
        *(("slices", name) for name in params.evaluate.slices),
        *(("groups", name) for name in params.evaluate.groups),
    ):
        if contract[column].type not in ("string", "boolean"):
            raise ConfigError(
                f"params.yaml: evaluate.{key}: '{column}' is {contract[column].type}; {key} need string or boolean"
            )
    task, costs = contract.task, params.evaluate.costs
    columns = {name: tables.to_columns(part, contract.inputs) for name, part in parts.items()}
    truth = {name: tables.encode_target(part, contract) for name, part in parts.items()}
    weights = {name: read_sample_weights(part, contract) if contract.weight else None for name, part in parts.items()}
    answers = {name: predict(pipelines["model"], columns[name], contract, features) for name in parts}
    threshold = half_width = decision = None
    if task == "binary":
        seen, positive, counted = (out_of_fold[name].to_numpy() for name in ("truth", "answer_1", "weight"))
        threshold = metrics.choose_threshold(seen, positive, costs.false_positive, costs.false_negative, counted)
        decision = DecisionRule(threshold, costs.false_positive, costs.false_negative)
    elif task == "regression":
        unbiased = out_of_fold.filter(~pl.col("chose"))
        seen, values, counted = (unbiased[name].to_numpy() for name in ("truth", "answer_0", "weight"))
        half_width = metrics.conformal_half_width(seen, values, params.evaluate.interval_level, counted)

    def judge(name: str, found: np.ndarray) -> dict[str, float]:
        return metrics.compute_metrics(task, truth[name], add_interval(found, half_width), decision, weights[name])

    baselines = {
        **{
            name: predict(found, columns["test"], contract, features)
            for name, found in pipelines.items()
            if name != "model"
        },
        "prior": np.tile(prior, (len(truth["test"]), 1)),
    }
    output = add_interval(answers["test"], half_width)
    return {
        "threshold": threshold,
        "half_width": half_width,
        "metrics": {
            **{name: judge(name, answers[name]) for name in parts},
            **{name: judge("test", found) for name, found in baselines.items()},
        },
        "slices": evaluate_slices(
            parts["test"], contract, truth["test"], output, decision, params.evaluate, weights["test"]
        ),
        "aging": measure_aging(parts, contract, truth, answers, half_width, decision),
        "curves": metrics.compute_curves(task, truth["test"], output),
        "importance": compute_importance(
            pipelines["model"], columns["test"], truth["test"], contract, params.seed, weights["test"], features
        ),
    }


def measure_aging(
    parts: Mapping[str, pl.DataFrame],
    contract: Contract,
    truth: Mapping[str, np.ndarray],
    answers: Mapping[str, np.ndarray],
    half_width: float | None,
    decision: DecisionRule | None,
) -> list[dict[str, Any]]:
    """Measure how quality changes with the age of the model: the headline measure in equal spans after training.

    Args:
        parts: validation and test rows, all newer than the training rows where the split is by time.

    Returns:
        One record a span, with its days since the first validation row; none if rows have no times.
    """
    if contract.time is None:
        return []
    times = np.concatenate([parts[name][contract.time.name].to_numpy() for name in answers])
    days = (times - times.min()) / np.timedelta64(1, "D")
    edges = np.linspace(0, days.max(), AGING_SPANS + 1)
    span = np.clip(np.searchsorted(edges, days, side="right") - 1, 0, AGING_SPANS - 1)
    all_truth = np.concatenate([truth[name] for name in answers])
    output = add_interval(np.concatenate(list(answers.values())), half_width)
    headline = metrics.HEADLINE[contract.task]
    found = []
    for at in range(AGING_SPANS):
        member = span == at
        measured = metrics.compute_metrics(contract.task, all_truth[member], output[member], decision)
        if headline in measured:
            found.append(
                {
                    "from_days": round(float(edges[at]), 3),
                    "until_days": round(float(edges[at + 1]), 3),
                    "rows": int(member.sum()),
                    headline: measured[headline],
                }
            )
    return found


def add_interval(answers: np.ndarray, half_width: float | None) -> np.ndarray:
    """Answers as an output (see `metrics.compute_metrics`): values get their interval, probabilities stay."""
    if half_width is None:
        return answers
    value = answers[:, 0]
    return np.stack((value, value - half_width, value + half_width), axis=1)


def load_pipeline(path: Path, hashes: Mapping[str, str]) -> Any:
    """Load a pipeline of the train stage, after verifying its sha256.

    Raises:
        IntegrityError: the file differs from what the train stage wrote.
    """
    if sha256_file(path) != hashes[path.name]:
        raise IntegrityError(f"{path} is not the file that the train stage wrote; run `dvc repro --force train`")
    return joblib.load(path)


def main(project: Project) -> None:
    """Read models and splits, evaluate, and write metrics, plots and the full evaluation."""
    contract, params = Contract.load(paths.CONTRACT), project.load_params()
    split, trained = read_json(paths.REPORTS / "split.json"), read_json(paths.REPORTS / "train.json")
    pipelines = {
        "model": load_pipeline(paths.MODEL, trained["sha256"]),
        "linear": load_pipeline(paths.BASELINE, trained["sha256"]),
    }
    if paths.SKLEARN_DEFAULT.name in trained["sha256"]:
        pipelines["sklearn_default"] = load_pipeline(paths.SKLEARN_DEFAULT, trained["sha256"])
    parts = {name: read_split(name, split) for name in ("validation", "test")}
    out_of_fold = tables.read_verified(paths.OUT_OF_FOLD, trained["sha256"][paths.OUT_OF_FOLD.name])
    found = evaluate(pipelines, parts, contract, params, trained["prior"], out_of_fold, project.features)
    importance = found.pop("importance")
    chosen = params.train.model_copy(update={"estimator": trained["estimator"]})
    if trained["tuned"]:
        chosen = tune.apply_parameters(chosen, trained["tuned"]["parameters"])
    ablation = measure_ablation(
        read_split("train", split),
        parts["validation"],
        contract,
        params.model_copy(update={"train": chosen}),
        importance,
        project.features,
    )
    write_json(paths.ABLATION, ablation.model_dump(mode="json"))
    for name, points in (*found.pop("curves").items(), ("importance", importance)):
        write_json(paths.PLOTS / f"{name}.json", points)
    write_json(paths.REPORTS / "metrics.json", found["metrics"])
    write_json(paths.REPORTS / "evaluation.json", found)
