"""Stage 4: fit the model, and the linear baseline that it has to beat."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import joblib
import numpy as np
import polars as pl
from sklearn.pipeline import Pipeline

from .. import stage
from ..contract import Contract
from ..data import tables
from ..errors import DataError
from ..features import Featurizer
from ..files import read_json, replacing_folder, sha256_file, write_json
from ..params import LINEAR, Params
from . import categories, estimators, free_text, tune
from .estimators import Rows


class Fitted(NamedTuple):
    """The model, its linear baseline, and what is answered without either: shares of the classes, or the mean.

    `yardstick` is scikit-learn's gradient boosting with default settings, where params.yaml wants it; `text` says
    whether free texts were worth their words, where there are any, and `splits` how trees split listed categories,
    where that was left to the validation rows.
    """

    model: Pipeline
    baseline: Pipeline
    prior: tuple[float, ...]
    yardstick: Pipeline | None = None
    text: free_text.Judged | None = None
    splits: categories.Judged | None = None


def train(rows: pl.DataFrame, contract: Contract, params: Params, validation: pl.DataFrame | None = None) -> Fitted:
    """Fit on n_rows × contract columns; the same rows and parameters give the same model, bit for bit.

    Args:
        rows: what is learnt from.
        contract: what a row is.
        params: which estimator, with which parameters.
        validation: rows that say whether the words of free texts help, how categories are split, and when boosting
            that is to stop early gains no more. Without them words are kept, categories are split in their order, and
            boosting sets rows aside for itself.

    Raises:
        DataError: the training rows lack a class, or hold one value of the target only.
        ConfigError: the estimator is none for this task.
    """
    shares = prior(rows, contract)
    truth = tables.truth(rows, contract)
    featurizer = Featurizer(contract)
    frame = _frame(rows, contract, featurizer)
    labels = truth if contract.task == "regression" else truth.astype(np.int64)
    seen = None
    if validation is not None:
        seen = Rows(_frame(validation, contract, featurizer), tables.truth(validation, contract))
    build = partial(estimators.build, task=contract.task, params=params.train, featurizer=featurizer, seed=params.seed)
    texts = sum(column.text for column in featurizer.categorical)
    # Without its words a table of texts alone has nothing left to learn from, and the yardstick reads none.
    texts_alone = texts == len(featurizer.numeric) + len(featurizer.categorical)
    model: Pipeline | None = None
    judged: free_text.Judged | None = None
    if seen is not None and texts and not texts_alone:
        build_own = partial(build, params.train.estimator)
        model, judged = free_text.judge(build_own, Rows(frame, labels), seen, contract.task)

    def arranged(pipeline: Pipeline) -> Pipeline:
        return judged.arrange(pipeline) if judged else pipeline

    if model is None:
        model = estimators.fit(arranged(build(params.train.estimator)), frame, labels, seen)
    splits = None
    if seen is not None and estimators.may_split_into_sets(params.train, featurizer):
        in_sets = arranged(build("hist_gradient_boosting", params=estimators.splitting_into_sets(params.train)))
        model, splits = categories.judge(model, estimators.fit(in_sets, frame, labels, seen), seen, contract.task)
    spread = estimators.spread(labels, params.train.baseline_rows, contract.task)
    baseline = estimators.fit(arranged(build(LINEAR[contract.task])), frame[spread], labels[spread])
    yardstick = None
    if params.train.yardstick and not texts_alone:
        same = estimators.is_yardstick(params.train, featurizer, len(labels))
        other = estimators.yardstick(contract.task, featurizer, params.seed)
        yardstick = model if same else estimators.fit(other, frame, labels)
    return Fitted(model, baseline, shares, yardstick, judged, splits)


def _frame(rows: pl.DataFrame, contract: Contract, featurizer: Featurizer) -> pl.DataFrame:
    return estimators.to_frame(featurizer.encode(tables.to_columns(rows, contract.inputs)))


def prior(rows: pl.DataFrame, contract: Contract) -> tuple[float, ...]:
    """Shares of the classes among n_rows, or the mean of a number.

    Raises:
        DataError: a class is absent, or all values are the same.
    """
    target, truth = contract.target.name, tables.truth(rows, contract)
    if not contract.classes:
        if truth.min() == truth.max():
            raise DataError(
                f"the {len(truth):,} training rows hold one value of '{target}' only; nothing can be learnt"
            )
        return (float(truth.mean()),)
    counts = np.bincount(truth.astype(np.intp), minlength=len(contract.classes))
    if absent := [label for label, count in zip(contract.classes, counts.tolist(), strict=True) if not count]:
        raise DataError(
            f"none of the {len(truth):,} training rows has the class {absent[0]!r} of '{target}', so it cannot be "
            "learnt; add such rows, or drop the class from contract.yaml"
        )
    return tuple((counts / len(truth)).tolist())


def read_split(name: str, report: Mapping[str, Any]) -> pl.DataFrame:
    """One part of the split, if it still is what the split stage wrote."""
    return tables.read_verified(stage.SPLITS[name], report[name]["sha256"])


def main() -> None:
    """Read the training part, tune where that is wanted, fit, write the pipelines."""
    contract, params = Contract.load(stage.CONTRACT), Params.load(stage.PARAMS)
    split = read_json(stage.REPORTS / "split.json")
    rows, tuned = read_split("train", split), None
    validation = read_split("validation", split)
    report: dict[str, Any] = {"trials": []}
    if params.tune.trials:
        prior(rows, contract)  # What cannot be learnt is refused before, not after, the search.
        hashes = {name: split[name]["sha256"] for name in ("train", "validation")}
        found = tune.search(rows, validation, contract, params, hashes)
        params = params.model_copy(update={"train": tune.applied(params.train, found.best.parameters)})
        report = found.report()
        tuned = {
            "trials": len(found.trials),
            "parameters": dict(found.best.parameters),
            "loss": found.best.loss,
            "loss_untuned": found.trials[0].loss,
        }
    fitted = train(rows, contract, params, validation)
    pipelines = {stage.MODEL: fitted.model, stage.BASELINE: fitted.baseline}
    if fitted.yardstick is not None:
        pipelines[stage.YARDSTICK] = fitted.yardstick
    with replacing_folder(stage.MODEL.parent) as folder:
        for path, pipeline in pipelines.items():
            joblib.dump(pipeline, folder / path.name)
    write_json(stage.REPORTS / "tuning.json", report)
    write_json(
        stage.REPORTS / "train.json",
        {
            "estimator": params.train.estimator,
            "rows": split["train"]["rows"],
            "prior": list(fitted.prior),
            **({"text": fitted.text._asdict()} if fitted.text else {}),
            **({"categories": fitted.splits._asdict()} if fitted.splits else {}),
            "sha256": {path.name: sha256_file(path) for path in pipelines},
            "tuned": tuned,
        },
    )


if __name__ == "__main__":
    stage.run(main)
