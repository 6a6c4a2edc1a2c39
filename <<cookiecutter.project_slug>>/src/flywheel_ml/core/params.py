"""Typed model of params.yaml: every parameter that changes a result."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from flywheel_ml.core.canary_params import CanaryParams
from flywheel_ml.core.catalog import STANDARD_ESTIMATORS, Estimator
from flywheel_ml.core.retraining_params import PolicyParams, RetrainParams
from flywheel_ml.utils import config_model, timestamps
from flywheel_ml.utils.errors import ConfigError
from flywheel_ml.utils.files import canonical_json, sha256_text


class DataParams(config_model.StrictModel):
    """Path of the raw table, and the time up to which its rows are used.

    `until` is in the time zone of the table's time column; a value with an offset is converted to it.
    """

    raw: Path
    until: datetime | None = None

    @field_validator("until", mode="before")
    @classmethod
    def _parse_until(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return timestamps.parse_iso(value)
        except ValueError:
            raise ValueError("expected a date or a timestamp in ISO 8601, such as 2013-11-01") from None


class SplitParams(config_model.StrictModel):
    """How rows are split; see data/split.py. A split by time takes either days or shares."""

    by: Literal["time", "hash"] = "time"
    group: str | None = None
    validation_days: int | None = Field(default=None, gt=0)
    test_days: int | None = Field(default=None, gt=0)
    validation_share: float = Field(default=0.15, gt=0, lt=0.5)
    test_share: float = Field(default=0.15, gt=0, lt=0.5)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.validation_days is None) != (self.test_days is None):
            raise ValueError("validation_days and test_days go together; give both, or shares in place of both")
        if self.by == "hash" and self.test_days is not None:
            raise ValueError("days need `by: time`; give validation_share and test_share for a split by hash")
        if self.by == "time" and self.group is not None:
            raise ValueError("group needs `by: hash`; a split by time keeps no group together")
        return self


class HistGradientBoostingParams(config_model.StrictModel):
    """See sklearn.ensemble.HistGradientBoostingClassifier, and -Regressor; but for `categories`.

    That says how trees split the listed categories of a column: into any two sets (`sets`), where their places in the
    contract are cut (`order`), or as is better on the validation rows (`auto`).
    """

    learning_rate: float = Field(default=0.1, gt=0)
    max_iter: int = Field(default=100, gt=0)
    max_leaf_nodes: int = Field(default=31, gt=1)
    min_samples_leaf: int = Field(default=20, gt=0)
    l2_regularization: float = Field(default=0.0, ge=0)
    early_stopping: bool = False
    categories: Literal["auto", "sets", "order"] = "auto"

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters that scikit-learn accepts."""
        return self.model_dump(exclude={"categories"})


class LogisticRegressionParams(config_model.StrictModel):
    """See sklearn.linear_model.LogisticRegression."""

    C: float = Field(default=1.0, gt=0)
    max_iter: int = Field(default=200, gt=0)


class RidgeParams(config_model.StrictModel):
    """See sklearn.linear_model.Ridge."""

    alpha: float = Field(default=1.0, ge=0)


class SplineLogisticRegressionParams(config_model.StrictModel):
    """Logistic regression on linear splines: each number may bend at `n_knots` of its quantiles."""

    n_knots: int = Field(default=5, gt=0, le=50)
    C: float = Field(default=0.1, gt=0)
    max_iter: int = Field(default=200, gt=0)


class SplineRidgeParams(config_model.StrictModel):
    """Ridge regression on linear splines: each number may bend at `n_knots` of its quantiles."""

    n_knots: int = Field(default=5, gt=0, le=50)
    alpha: float = Field(default=10.0, ge=0)


class RegularizedBoostingParams(config_model.StrictModel):
    """Histogram gradient boosting regularised for small tables: small trees, small steps, shrunken leaves."""

    learning_rate: float = Field(default=0.05, gt=0)
    max_iter: int = Field(default=100, gt=0)
    max_leaf_nodes: int = Field(default=8, gt=1)
    min_samples_leaf: int = Field(default=20, gt=0)
    l2_regularization: float = Field(default=10.0, ge=0)


class RandomForestParams(config_model.StrictModel):
    """See sklearn.ensemble.RandomForestClassifier, and -Regressor; the number of leaves limits the model's size."""

    n_estimators: int = Field(default=100, gt=0, le=2000)
    max_leaf_nodes: int = Field(default=1000, gt=1, le=100_000)
    min_samples_leaf: int = Field(default=2, gt=0)
    max_features: float = Field(default=0.5, gt=0, le=1)


class MlpParams(config_model.StrictModel):
    """See sklearn.neural_network.MLPClassifier, and -Regressor; `max_steps` limits the training time.

    An epoch is one pass over the rows, a step one batch of them: a small table gets more epochs than a large one.
    """

    renamed: ClassVar[Mapping[str, str]] = {"steps": "max_steps"}

    hidden_layer_sizes: tuple[PositiveInt, ...] = Field(default=(64, 32), min_length=1, max_length=8)
    alpha: float = Field(default=0.001, ge=0)
    learning_rate_init: float = Field(default=0.003, gt=0)
    batch_size: int = Field(default=256, gt=0)
    max_steps: int = Field(default=5000, gt=0)


class TrainParams(config_model.StrictModel):
    """The estimator to train, and the parameters of each; see model/training/selection.py.

    A project adds estimators by a subclass with a larger `catalog` and one more field for each: its parameters.
    `auto` lets `candidates` compete; none listed means all that fit the task. `calibration` is chosen in the same way.
    """

    renamed: ClassVar[Mapping[str, str]] = {"yardstick": "sklearn_default"}
    catalog: ClassVar[Mapping[str, Estimator]] = STANDARD_ESTIMATORS

    estimator: str
    candidates: tuple[str, ...] = ()
    calibration: Literal["auto", "none", "temperature", "sigmoid", "isotonic"] = "auto"
    hist_gradient_boosting: HistGradientBoostingParams = HistGradientBoostingParams()
    logistic_regression: LogisticRegressionParams = LogisticRegressionParams()
    ridge: RidgeParams = RidgeParams()
    spline_logistic_regression: SplineLogisticRegressionParams = SplineLogisticRegressionParams()
    spline_ridge: SplineRidgeParams = SplineRidgeParams()
    regularized_boosting: RegularizedBoostingParams = RegularizedBoostingParams()
    random_forest: RandomForestParams = RandomForestParams()
    mlp: MlpParams = MlpParams()
    baseline_rows: int = Field(default=20_000, gt=0)
    sklearn_default: bool = True

    @field_validator("estimator", mode="before")
    @classmethod
    def _is_known(cls, value: object) -> object:
        known = ["auto", *cls.catalog]
        if isinstance(value, str) and value not in known:
            raise ValueError(f"no such estimator; {config_model.suggest(value, known)}")
        return value

    @field_validator("candidates", mode="before")
    @classmethod
    def _are_known(cls, values: object) -> object:
        known = list(cls.catalog)
        if not isinstance(values, list | tuple):
            return values
        for value in values:
            if isinstance(value, str) and value not in known:
                raise ValueError(f"no such estimator '{value}'; {config_model.suggest(value, known)}")
        return tuple(values)

    def parameters_of(self, name: str) -> config_model.StrictModel:
        """The parameters of one estimator.

        Raises:
            ConfigError: the catalog has the estimator, but there is no field for its parameters.
        """
        found = getattr(self, name, None)
        if not isinstance(found, config_model.StrictModel):
            raise ConfigError(f"estimators.py: TrainParams has no field '{name}' for the parameters of that estimator")
        return found


class TuneParams(config_model.StrictModel):
    """How many configurations tuning tries before training, and on at most how many rows; 0 trials: no tuning."""

    renamed: ClassVar[Mapping[str, str]] = {"rows": "max_rows"}

    trials: int = Field(default=0, ge=0)
    max_rows: int = Field(default=50_000, gt=0)


class CostParams(config_model.StrictModel):
    """Cost of each kind of error; the decision threshold minimises the total on out-of-fold rows."""

    false_positive: float = Field(default=1.0, gt=0)
    false_negative: float = Field(default=1.0, gt=0)


class EvaluateParams(config_model.StrictModel):
    """How the trained model is evaluated; `costs` apply to binary tasks, `interval_level` to regression.

    `slices` and `groups` are columns whose values are measured separately; `gates.max_group_gap` limits how far the
    values of a group column may be apart.
    """

    costs: CostParams = CostParams()
    interval_level: float = Field(default=0.9, gt=0, lt=1)
    slices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    min_slice_rows: int = Field(default=200, gt=0)


class ExplainParams(config_model.StrictModel):
    """How many training rows the bundle holds for explanations to compare with; 0: it cannot explain."""

    background_rows: int = Field(default=50, ge=0, le=200)


class GateParams(config_model.StrictModel):
    """Thresholds that a model must meet before promotion; see model/evaluation/gate.py.

    `significance_level` is that of the two one-sided tests on out-of-fold rows: better than the class prior, and not
    worse than the linear baseline. `min_score`, `min_gain_over_linear`, `max_drop_from_champion` and the slices refer
    to test rows: ROC AUC for classes, R² for numbers. None disables a gate.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "significance": "significance_level",
        "floor": "min_score",
        "skill_over_trivial": "min_skill_score",
        "gain_over_linear": "min_gain_over_linear",
        "loss_to_champion": "max_drop_from_champion",
        "slice_floor": "min_slice_score",
        "slice_loss": "max_slice_drop",
        "class_recall": "min_class_recall",
        "calibration_error": "max_calibration_error",
        "latency_ms": "max_latency_ms",
        "size_mb": "max_size_mb",
    }

    significance_level: float = Field(default=0.05, gt=0, lt=0.5)
    min_score: float | None = Field(default=None, ge=-1, le=1)
    min_skill_score: float | None = Field(default=None, ge=-1, le=1)
    min_gain_over_linear: float | None = Field(default=None, ge=-1, le=1)
    max_drop_from_champion: float = Field(ge=0, le=1)
    parity_tolerance: float = Field(gt=0)
    min_slice_score: float | None = Field(default=None, ge=-1, le=1)
    max_slice_drop: float | None = Field(default=None, ge=0, le=2)
    min_class_recall: float = Field(default=0.0, ge=0, le=1)
    max_calibration_error: float = Field(default=0.15, gt=0, le=1)
    coverage_tolerance: float = Field(default=0.1, ge=0, le=1)
    max_group_gap: float | None = Field(default=None, ge=0, le=1)
    forbidden_columns: tuple[str, ...] = ()
    max_feature_us: float = Field(default=200.0, gt=0)
    max_latency_ms: float = Field(default=20.0, gt=0)
    max_size_mb: float = Field(default=200.0, gt=0)


class RolloutParams(config_model.StrictModel):
    """Rollout of a model that passed its gates."""

    auto_promote: bool = False


class ScoreParams(config_model.StrictModel):
    """Batch scoring."""

    chunk_rows: int = Field(default=65_536, gt=0)


TEST_ROWS, SAME_SEASON = "test", "same-season"
"""References of monitoring that need no span: the rows that the model was tested on, and the log's earlier years."""


class NamedSpan(config_model.StrictModel):
    """An earlier span of the prediction log: since ≤ time < until, in UTC."""

    since: datetime
    until: datetime

    @field_validator("since", "until")
    @classmethod
    def _to_utc(cls, time: datetime) -> datetime:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.since >= self.until:
            raise ValueError("since must be earlier than until")
        return self


class MonitorParams(config_model.StrictModel):
    """When a window counts as drifted or degraded; the method is in docs/monitoring.md."""

    renamed: ClassVar[Mapping[str, str]] = {
        "alpha": "significance_level",
        "numeric_floor": "min_effect_numeric",
        "category_floor": "min_effect_categorical",
        "prediction_floor": "min_effect_prediction",
        "quality_drop": "max_quality_drop",
        "error_rise": "max_error_increase",
        "confidence": "confidence_level",
    }

    min_rows: int = Field(default=200, gt=0)
    significance_level: float = Field(default=0.01, gt=0, lt=1)
    min_effect_numeric: float = Field(default=0.05, gt=0, le=1)
    min_effect_categorical: float = Field(default=0.05, gt=0, le=1)
    min_effect_prediction: float = Field(default=0.05, gt=0, le=1)
    min_labels: int = Field(default=200, gt=0)
    max_quality_drop: float = Field(default=0.03, gt=0, le=1)
    max_error_increase: float = Field(default=0.1, gt=0)
    confidence_level: float = Field(default=0.95, gt=0, lt=1)
    max_compute_increase: float = Field(default=1.0, gt=0)
    label_horizon_days: float | None = Field(default=None, gt=0)
    reference: str = TEST_ROWS
    references: dict[str, NamedSpan] = Field(default_factory=dict)

    @field_validator("references")
    @classmethod
    def _names_are_free(cls, references: dict[str, NamedSpan]) -> dict[str, NamedSpan]:
        if taken := [name for name in (TEST_ROWS, SAME_SEASON) if name in references]:
            raise ValueError(f"'{taken[0]}' is a reference of its own; rename the span")
        return references

    @property
    def label_horizon_us(self) -> int | None:
        """`label_horizon_days` in microseconds."""
        return None if self.label_horizon_days is None else int(self.label_horizon_days * 86_400_000_000)


TRAINING_GROUPS = {"seed", "data", "split", "train", "tune", "evaluate", "explain"}
"""Groups of parameters that affect the bundle."""


class Params(config_model.StrictModel):
    """The whole of params.yaml."""

    seed: int = Field(ge=0)
    data: DataParams
    split: SplitParams
    train: TrainParams
    tune: TuneParams = TuneParams()
    evaluate: EvaluateParams
    explain: ExplainParams = ExplainParams()
    gates: GateParams
    rollout: RolloutParams = RolloutParams()
    score: ScoreParams = ScoreParams()
    monitor: MonitorParams = MonitorParams()
    retrain: RetrainParams = RetrainParams()
    policy: PolicyParams = PolicyParams()
    canary: CanaryParams = CanaryParams()

    @model_validator(mode="after")
    def _tunes_one_estimator(self) -> Self:
        if self.tune.trials and self.train.estimator == "auto":
            raise ValueError("tune.trials needs one estimator; name it as train.estimator in place of auto, or set 0")
        return self

    @model_validator(mode="after")
    def _is_relative(self) -> Self:
        if self.data.raw.is_absolute():
            raise ValueError(f"data.raw: '{self.data.raw}' is absolute; give a path inside the project")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read params.yaml.

        Raises:
            ConfigError: the file is missing or malformed.
        """
        return config_model.load(path, cls)

    def training_fingerprint(self) -> str:
        """sha256 of the parameters that affect the bundle; thresholds of gates and monitoring do not."""
        training_params = self.model_dump(mode="json", include=TRAINING_GROUPS)
        return sha256_text(canonical_json(training_params))
