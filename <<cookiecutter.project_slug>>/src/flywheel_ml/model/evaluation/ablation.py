"""Refits without single features, and with other hyperparameters: is each feature, and each parameter, worth it?

Every variant is fitted on the same sample of training rows and judged on the same sample of validation rows, so that
losses are paired. Sizes are counted in rows and columns, never in seconds: the result is the same on every machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from flywheel_ml.core.catalog import Choice, SearchRange
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.features import Feature, Featurizer
from flywheel_ml.core.params import Params, TrainParams
from flywheel_ml.model.pipelines import estimators
from flywheel_ml.model.training import selection
from flywheel_ml.model.training.selection import TrainingTable
from flywheel_ml.utils.config_model import StrictModel

ABLATION_CELLS, PROBE_CELLS, JUDGED_CELLS = 80_000, 500_000, 150_000
"""Rows × columns of the training samples of both kinds of refits, and of the validation sample."""
LIMITS = {"max_steps": 100, "n_estimators": 30}
"""Most batches of a network, and trees of a forest; `MAX_TREES` of boosting."""
MAX_TREES = 60
BOOSTING = ("hist_gradient_boosting", "regularized_boosting")
WEAKEST = 3
"""Features that are refitted without; the others are clearly used, by their permutation importance."""
PROBES = 3
"""Other configurations of the estimator that are tried."""
STANDARD_ERRORS = 3.0
MIN_SHARE = 0.005
"""A difference counts from this share of the loss on, and from this many standard errors."""


class RefitResult(StrictModel):
    """A refit: the paired difference of its loss to that of the unchanged model, `whole`, on the validation sample."""

    name: str
    whole: float
    difference: float
    standard_error: float

    @property
    def is_better(self) -> bool:
        """Whether the refit is clearly better than the unchanged model."""
        return self.difference < -max(STANDARD_ERRORS * self.standard_error, MIN_SHARE * self.whole)


class Ablation(StrictModel):
    """What each feature and each hyperparameter is worth.

    Attributes:
        rows: of the samples: for the refits without a feature, for those with other hyperparameters, and to judge.
        importance: loss that shuffling each column adds, on test rows.
        without: the refits without one of the weakest columns, or without a derived feature.
        probes: the refits with other hyperparameters, named by what differs.
    """

    rows: tuple[int, int, int]
    importance: dict[str, float]
    without: tuple[RefitResult, ...]
    probes: tuple[RefitResult, ...]


class _Samples(NamedTuple):
    train: pl.DataFrame
    validation: pl.DataFrame


_Variant = tuple[_Samples, TrainParams, Sequence[Feature]]
"""What a refit is fitted on and judged on, its configuration, and the project's features."""


def measure_ablation(
    train: pl.DataFrame,
    validation: pl.DataFrame,
    contract: Contract,
    params: Params,
    importance: Sequence[Mapping[str, Any]],
    features: Sequence[Feature] = (),
) -> Ablation:
    """Refit without the weakest features and with other hyperparameters.

    Args:
        train, validation: n_rows × contract columns.
        contract: of the rows.
        params: `train` names the estimator that was chosen, with its parameters.
        importance: as `evaluate.compute_importance` returns it.
        features: the project's own, which are ablated too.
    """
    width = max(1, len(Featurizer(contract, features).numeric) + len(contract.inputs))
    judged = _sample(validation, JUDGED_CELLS // width)
    few, many = _sample(train, ABLATION_CELLS // width), _sample(train, PROBE_CELLS // width)
    small = _limit(params.train)
    known = {str(one["column"]): float(one["loss"]) for one in importance}
    weakest = sorted(known, key=lambda name: known[name])[:WEAKEST] if len(contract.inputs) > 1 else []
    refit = _Refit(contract, params)
    ablated = {name: (_hold_constant(_Samples(few, judged), name), small, features) for name in weakest}
    for feature in features:
        rest = [_make_constant(one) if one is feature else one for one in features]
        ablated[feature.__name__] = (_Samples(few, judged), small, rest)
    probed = {name: (_Samples(many, judged), changed, features) for name, changed in _vary(small, params.seed)}
    return Ablation(
        rows=(few.height, many.height, judged.height),
        importance=known,
        without=refit.compare((_Samples(few, judged), small, features), ablated),
        probes=refit.compare((_Samples(many, judged), small, features), probed),
    )


class _Refit:
    """Fits variants and compares their losses on the same rows."""

    def __init__(self, contract: Contract, params: Params) -> None:
        self._contract = contract
        self._params = params

    def compare(self, whole: "_Variant", variants: Mapping[str, "_Variant"]) -> tuple[RefitResult, ...]:
        """Compare each variant with the unchanged model."""
        if not variants:
            return ()
        base, judged = self._fit(whole)
        mean = float(np.average(base, weights=judged.weights))
        found = []
        for name, variant in variants.items():
            losses, _ = self._fit(variant)
            difference, error, _ = selection.compute_mean_and_error(losses - base, judged.weights, judged.clusters)
            found.append(
                RefitResult(
                    name=name,
                    whole=mean,
                    difference=difference,
                    standard_error=error if np.isfinite(error) else mean,
                )
            )
        return tuple(found)

    def _fit(self, variant: "_Variant") -> tuple[np.ndarray, TrainingTable]:
        """Return the losses of the judged rows, and those rows encoded."""
        samples, tried, features = variant
        task, split = self._contract.task, self._params.split
        featurizer = Featurizer(self._contract, features)
        fitted_on, judged = (
            TrainingTable.encode(part, self._contract, featurizer, split.by, split.group) for part in samples
        )
        pipeline = estimators.build(tried.estimator, task, tried, featurizer, self._params.seed)
        model = selection.fit(pipeline, fitted_on, np.arange(fitted_on.size), task, judged.rows)
        answers = selection.predict(model, judged.rows.frame, task, max(1, len(self._contract.classes)))
        return selection.compute_row_losses(task, judged.rows.labels.astype(np.float64), answers), judged


def _sample(table: pl.DataFrame, rows: int) -> pl.DataFrame:
    chosen = np.linspace(0, table.height - 1, min(table.height, max(200, rows))).astype(np.intp)
    found: pl.DataFrame = table[chosen.tolist()]
    return found


def _limit(params: TrainParams) -> TrainParams:
    """The same configuration with at most a few trees or steps; category sets become orders, which fit faster."""
    group = params.parameters_of(params.estimator)
    limits = LIMITS | ({"max_iter": MAX_TREES} if params.estimator in BOOSTING else {})
    changed: dict[str, Any] = {
        name: min(getattr(group, name), most) for name, most in limits.items() if hasattr(group, name)
    }
    if hasattr(group, "categories"):
        changed["categories"] = "order"
    return params.model_copy(update={params.estimator: group.model_copy(update=changed)})


def _hold_constant(samples: _Samples, name: str) -> _Samples:
    """Give every row one value of a column: the most frequent one of the training sample."""
    value = samples.train[name].drop_nulls().mode().sort()
    constant = pl.lit(value[0] if len(value) else None, dtype=samples.train.schema[name]).alias(name)
    return _Samples(samples.train.with_columns(constant), samples.validation.with_columns(constant))


def _make_constant(feature: Feature) -> Feature:
    @wraps(feature)
    def constant(*columns: np.ndarray) -> np.ndarray:
        return np.zeros(len(columns[0]))

    return constant


def _vary(params: TrainParams, seed: int) -> Iterator[tuple[str, TrainParams]]:
    """Yield configurations drawn from the search space of the estimator, within a factor of three of the current.

    What compensates for the number of trees or steps stays, because `_limit` may have lowered that.
    """
    space = params.catalog[params.estimator].search
    group = params.parameters_of(params.estimator)
    fixed = ("max_iter", "max_steps", "n_estimators", "learning_rate", "learning_rate_init")
    names = [name for name in space if name not in fixed]
    rng = np.random.default_rng(seed)
    for _ in range(PROBES if names else 0):
        drawn = {name: _draw(space[name], getattr(group, name), rng) for name in names}
        text = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in drawn.items()
        )
        yield text, params.model_copy(update={params.estimator: group.model_copy(update=drawn)})


def _draw(space: SearchRange | Choice, current: Any, rng: np.random.Generator) -> Any:
    if not isinstance(space, SearchRange):
        values = list(space.values())
        return values[int(rng.integers(len(values)))]
    low, high = max(space.low, current / 3), min(space.high, max(current * 3, space.low))
    if low > high:
        low, high = space.low, space.high
    value = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if low > 0 else float(rng.uniform(low, high))
    return round(value) if isinstance(space.low, int) else value
