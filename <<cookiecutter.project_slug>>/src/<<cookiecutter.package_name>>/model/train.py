"""Stage 4: fit the model, and the linear baseline that it has to beat."""

from collections.abc import Mapping
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
from ..params import Params
from . import estimators


class Fitted(NamedTuple):
    """The model, its baseline, and the share of positive labels among the training rows."""

    model: Pipeline
    baseline: Pipeline
    prior: float


def train(rows: pl.DataFrame, contract: Contract, params: Params) -> Fitted:
    """Fit on n_rows × contract columns; the same rows and parameters give the same model, bit for bit.

    Raises:
        DataError: the training rows hold one class only.
    """
    labels = rows[contract.target.name].to_numpy()
    if labels.all() or not labels.any():
        raise DataError(
            f"the {len(labels):,} training rows hold one class of '{contract.target.name}' only; nothing can be learnt"
        )
    featurizer = Featurizer(contract)
    frame = estimators.to_frame(featurizer.encode(tables.to_columns(rows, contract.inputs)))
    model = estimators.build(params.train.estimator, params.train, featurizer, params.seed).fit(frame, labels)
    spread = np.linspace(0, len(labels) - 1, min(len(labels), params.train.baseline_rows)).astype(np.intp)
    baseline = estimators.build("logistic_regression", params.train, featurizer, params.seed)
    baseline.fit(frame[spread], labels[spread])
    return Fitted(model, baseline, int(labels.sum()) / len(labels))


def read_split(name: str, report: Mapping[str, Any]) -> pl.DataFrame:
    """One part of the split, if it still is what the split stage wrote."""
    return tables.read_verified(stage.SPLITS[name], report[name]["sha256"])


def main() -> None:
    """Read the training part, fit, write both pipelines."""
    contract, params = Contract.load(stage.CONTRACT), Params.load(stage.PARAMS)
    _ = contract.task
    split = read_json(stage.REPORTS / "split.json")
    fitted = train(read_split("train", split), contract, params)
    with replacing_folder(stage.MODEL.parent) as folder:
        joblib.dump(fitted.model, folder / stage.MODEL.name)
        joblib.dump(fitted.baseline, folder / stage.BASELINE.name)
    write_json(
        stage.REPORTS / "train.json",
        {
            "estimator": params.train.estimator,
            "rows": split["train"]["rows"],
            "prior": fitted.prior,
            "sha256": {path.name: sha256_file(path) for path in (stage.MODEL, stage.BASELINE)},
        },
    )


if __name__ == "__main__":
    stage.run(main)
