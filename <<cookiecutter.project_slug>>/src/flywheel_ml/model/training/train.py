"""Stage 4: selects and fits the model and its linear baseline."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import joblib
import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from flywheel_ml.core import paths
from flywheel_ml.core.catalog import LINEAR
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.features import Feature, Featurizer
from flywheel_ml.core.params import Params, TrainParams
from flywheel_ml.core.project import Project
from flywheel_ml.data import tables
from flywheel_ml.model.pipelines import estimators, free_text
from flywheel_ml.model.pipelines.fitted import FittedModel
from flywheel_ml.model.training import calibrate, comparison, selection, tune
from flywheel_ml.model.training.calibrate import CalibrationResult
from flywheel_ml.model.training.selection import (
    SMALL_ROWS,
    OutOfFold,
    Score,
    Selection,
    TrainingTable,
    ignore_score,
    select,
)
from flywheel_ml.utils import formatting
from flywheel_ml.utils.errors import DataError
from flywheel_ml.utils.files import read_json, replacing_folder, sha256_file, write_json


class TrainedModels(NamedTuple):
    """The model, its linear baseline, and the prior: class shares, or the mean.

    Attributes:
        sklearn_default: scikit-learn's gradient boosting with default settings, if params.yaml enables it.
        selection: results of the candidates.
        calibration_result: how probabilities are calibrated; None for numbers.
        out_of_fold: of training and validation rows, see `selection.OutOfFold`.
        text: whether free text is used, if there is any.
    """

    model: FittedModel
    baseline: FittedModel
    prior: tuple[float, ...]
    sklearn_default: Any
    selection: Selection
    calibration_result: CalibrationResult | None
    out_of_fold: OutOfFold
    text: free_text.TextSelection | None = None


def train(
    rows: pl.DataFrame,
    contract: Contract,
    params: Params,
    validation: pl.DataFrame | None = None,
    on_score: Callable[[Score], None] = ignore_score,
    features: Sequence[Feature] = (),
) -> TrainedModels:
    """Choose and fit on n_rows × contract columns; the same rows and parameters give the same model, bit for bit.

    Args:
        rows: training rows.
        contract: contract of the rows.
        params: which estimators compete, with which parameters.
        validation: rows that judge candidates where training rows are many; those that judge nothing set the width of
            intervals. Without them the training rows do all of it.
        on_score: called with the score of each candidate as it comes.
        features: the project's own.

    Raises:
        DataError: the training rows lack a class, or hold one value of the target only.
        ConfigError: an estimator does not fit the task.
    """
    check_learnable(rows, contract)
    task, featurizer, split_params = contract.task, Featurizer(contract, features), params.split
    table = TrainingTable.encode(rows, contract, featurizer, split_params.by, split_params.group)
    validation_table, interval_rows = None, None
    if validation is not None:
        held_out = TrainingTable.encode(validation, contract, featurizer, split_params.by, split_params.group)
        validation_table, interval_rows = _divide_validation(table, held_out, task, params)
    # A small table judges its candidates by cross-validation.
    judge = validation_table if table.size > SMALL_ROWS else None
    texts = sum(column.free_text for column in featurizer.categorical)
    # Without its words a table of texts alone has nothing left to learn from, and the default model reads no words.
    texts_alone = texts == len(featurizer.numeric) + len(featurizer.categorical)
    text_selection = None
    if texts and not texts_alone:
        text_selection = _select_text_features(table, judge, contract, params, featurizer)

    def apply_text_selection(pipeline: Pipeline) -> Pipeline:
        return text_selection.apply(pipeline) if text_selection else pipeline

    found = select(table, judge, contract, params.train, featurizer, params.seed, apply_text_selection, on_score)
    calibration_result = (
        None if task == "regression" else calibrate.choose(found.out_of_fold, params.train.calibration, table.in_time)
    )

    def fit(estimator: str, settings: TrainParams, row_indices: np.ndarray) -> FittedModel:
        pipeline = apply_text_selection(estimators.build(estimator, task, settings, featurizer, params.seed))
        return selection.fit(pipeline, table, row_indices, task, validation_table.rows if validation_table else None)

    model = found.fitted or fit(found.winner.estimator, found.winner.params(params.train), np.arange(rows.height))
    if calibration_result is not None:
        model.calibration = calibration_result.calibration
    baseline = fit(
        LINEAR[task], params.train, estimators.pick_evenly_spaced(table.rows.labels, params.train.baseline_rows, task)
    )
    prior = selection.compute_prior(table, np.arange(rows.height), task, max(1, len(contract.classes)))
    sklearn_default = None
    if params.train.sklearn_default and not texts_alone:
        sklearn_default = _fit_sklearn_default(table, contract, featurizer, params.seed)
    out = calibration_result.out_of_fold if calibration_result else found.out_of_fold
    if interval_rows is not None:
        fresh = _predict(interval_rows, model, baseline, prior, task)
        out = OutOfFold.join([out, fresh._replace(rows=rows.height + fresh.rows)])
    return TrainedModels(
        model, baseline, tuple(prior.tolist()), sklearn_default, found, calibration_result, out, text_selection
    )


def _divide_validation(
    table: TrainingTable, held_out: TrainingTable, task: Task, params: Params
) -> tuple[TrainingTable, TrainingTable | None]:
    """The validation rows that judge candidates or stop boosting, and those that set the width of intervals."""
    is_large = table.size > SMALL_ROWS
    if task == "regression" and (is_large or params.tune.trials):
        # Rows that set the width of an interval choose nothing.
        return held_out.halves()
    return held_out, None if is_large else held_out


def _fit_sklearn_default(
    table: TrainingTable, contract: Contract, featurizer: Featurizer, seed: int
) -> Pipeline | None:
    """scikit-learn's default boosting, for comparison; None if it would cost too much."""
    if selection.is_default_too_costly(table, contract, featurizer):
        return None
    pipeline = estimators.build_sklearn_default(contract.task, featurizer, seed)
    return estimators.fit(pipeline, table.rows.frame, table.rows.labels, weights=table.weights)


def _select_text_features(
    table: TrainingTable,
    validation_table: TrainingTable | None,
    contract: Contract,
    params: Params,
    featurizer: Featurizer,
) -> free_text.TextSelection:
    """On one fold of the training rows, or on the validation rows where there are many training rows."""
    name = "regularized_boosting" if params.train.estimator == "auto" else params.train.estimator
    build = partial(estimators.build, name, contract.task, params.train, featurizer, params.seed)
    if validation_table is not None:
        return free_text.select_text_features(build, table.rows, validation_table.rows, contract.task)
    fold = next(selection.split_folds(table, contract.task, params.seed))
    return free_text.select_text_features(
        build, table.rows.take(fold.fit), table.rows.take(fold.predict), contract.task
    )


def _predict(
    table: TrainingTable, model: FittedModel, baseline: FittedModel, prior: np.ndarray, task: Task
) -> OutOfFold:
    answers, linear = (selection.predict(one, table.rows.frame, task, len(prior)) for one in (model, baseline))
    return OutOfFold(
        table.row_indices,
        table.rows.labels.astype(np.float64),
        table.weights,
        table.clusters,
        np.zeros(table.size, dtype=bool),
        answers,
        linear,
        np.broadcast_to(prior, answers.shape),
    )


def check_learnable(rows: pl.DataFrame, contract: Contract) -> None:
    """Raise `DataError` if a class is absent from n_rows, or all their values are the same."""
    target, truth = contract.target.name, tables.encode_target(rows, contract)
    if not contract.classes:
        if truth.min() == truth.max():
            raise DataError(
                f"the {len(truth):,} training rows have only one value of '{target}'; add rows with other values"
            )
        return
    counts = np.bincount(truth.astype(np.intp), minlength=len(contract.classes))
    if absent := [label for label, count in zip(contract.classes, counts.tolist(), strict=True) if not count]:
        raise DataError(
            f"none of the {len(truth):,} training rows has the class {absent[0]!r} of '{target}', so it cannot be "
            "predicted; add such rows, or drop the class from contract.yaml"
        )


def read_split(name: str, report: Mapping[str, Any]) -> pl.DataFrame:
    """Read one part of the split after verifying its sha256."""
    return tables.read_verified(paths.SPLITS[name], report[name]["sha256"])


def main(project: Project) -> None:
    """Read the training rows, tune if enabled, select and fit the candidates, and write the pipelines."""
    contract, params = Contract.load(paths.CONTRACT), project.load_params()
    split = read_json(paths.REPORTS / "split.json")
    rows, tuned = read_split("train", split), None
    validation = read_split("validation", split)
    report: dict[str, Any] = {"trials": []}
    if params.tune.trials:
        check_learnable(rows, contract)  # Reject untrainable data before the search.
        hashes = {name: split[name]["sha256"] for name in ("train", "validation")}
        table = TrainingTable.encode(
            validation, contract, Featurizer(contract, project.features), params.split.by, params.split.group
        )
        validation_rows = validation if contract.classes else validation[table.halves()[0].row_indices]
        found = tune.search(rows, validation_rows, contract, params, hashes, project.features)
        params = params.model_copy(update={"train": tune.apply_parameters(params.train, found.best.parameters)})
        report = found.report()
        tuned = {
            "trials": len(found.trials),
            "parameters": dict(found.best.parameters),
            "loss": found.best.loss,
            "loss_untuned": found.trials[0].loss,
        }
    seconds: dict[str, float] = {}
    measure = formatting.METRIC_NAMES["log_loss"] if contract.classes else "mean squared error"

    def on_score(score: Score) -> None:
        seconds[score.name] = score.seconds
        print(f"  {score.name}: {measure} {score.loss:.4g} in {score.seconds:.1f} s", flush=True)

    fitted = train(rows, contract, params, validation, on_score, project.features)
    pipelines = {paths.MODEL: fitted.model, paths.BASELINE: fitted.baseline}
    if fitted.sklearn_default is not None:
        pipelines[paths.SKLEARN_DEFAULT] = fitted.sklearn_default
    with replacing_folder(paths.MODEL.parent) as folder:
        for path, pipeline in pipelines.items():
            joblib.dump(pipeline, folder / path.name)
        tables.write(build_out_of_fold_table(fitted), folder / paths.OUT_OF_FOLD.name)
    write_json(paths.SELECTION_SECONDS, seconds)
    write_json(paths.REPORTS / "tuning.json", report)
    calibration_result = fitted.calibration_result
    write_json(
        paths.REPORTS / "train.json",
        {
            "estimator": fitted.selection.winner.estimator,
            "rows": split["train"]["rows"],
            "prior": list(fitted.prior),
            "selection": fitted.selection.report(),
            "comparison": comparison.compare(contract.task, fitted.out_of_fold),
            **({"calibration": calibration_result.report()} if calibration_result else {}),
            **({"text": fitted.text._asdict()} if fitted.text else {}),
            "sha256": {path.name: sha256_file(path) for path in (*pipelines, paths.OUT_OF_FOLD)},
            "tuned": tuned,
        },
    )


def build_out_of_fold_table(fitted: TrainedModels) -> pl.DataFrame:
    """One row for each out-of-fold prediction; `answer_0` and on are probabilities, or the value."""
    found = fitted.out_of_fold
    answers = {f"answer_{at}": column for at, column in enumerate(found.answers.T)}
    facts = {"row": found.rows, "truth": found.truth, "weight": found.weights, "chose": found.chose}
    return pl.DataFrame({**facts, **{name: np.ascontiguousarray(column) for name, column in answers.items()}})
