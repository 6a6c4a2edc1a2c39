"""The estimators that params.yaml can name, with their builders, tasks and search spaces.

It does not import scikit-learn, because commands that never train read parameters too.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flywheel_ml.core.contract import Task


class SearchRange(NamedTuple):
    """A range of numbers from `low` to `high`, integers if both ends are; `log` samples on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


Choice = Mapping[str, Any]
"""Values by the name under which an Optuna trial records them."""


class Extra(NamedTuple):
    """A module that an estimator needs, and the extra of pyproject.toml that installs it."""

    module: str
    name: str


class Estimator(NamedTuple):
    """One row of the catalog.

    Attributes:
        build: makes an unfitted scikit-learn pipeline from task, parameters, featurizer and seed; a function, or
            `module:function` where that imports scikit-learn.
        tasks: the tasks it supports.
        search: the search space of tuning, by parameter.
        extra: the package it needs besides scikit-learn.
    """

    build: Callable[[Task, Any, Any, int], Any] | str
    tasks: tuple[Task, ...]
    search: Mapping[str, SearchRange | Choice] = {}
    extra: Extra | None = None


CLASSES: tuple[Task, ...] = ("binary", "multiclass")
NUMBERS: tuple[Task, ...] = ("regression",)
ALL: tuple[Task, ...] = (*CLASSES, *NUMBERS)
LINEAR: dict[Task, str] = {"binary": "logistic_regression", "multiclass": "logistic_regression", "regression": "ridge"}
"""The linear baseline of each task."""
STANDARD_ESTIMATORS: dict[str, Estimator] = {
    "logistic_regression": Estimator(
        build="flywheel_ml.model.pipelines.estimators:logistic_regression",
        tasks=CLASSES,
        search={"C": SearchRange(1e-3, 1e3, log=True)},
    ),
    "ridge": Estimator(
        build="flywheel_ml.model.pipelines.estimators:ridge",
        tasks=NUMBERS,
        search={"alpha": SearchRange(1e-3, 1e4, log=True)},
    ),
    "spline_logistic_regression": Estimator(
        build="flywheel_ml.model.pipelines.estimators:spline_logistic_regression",
        tasks=CLASSES,
        search={"C": SearchRange(1e-3, 1e3, log=True), "n_knots": SearchRange(2, 20, log=True)},
    ),
    "spline_ridge": Estimator(
        build="flywheel_ml.model.pipelines.estimators:spline_ridge",
        tasks=NUMBERS,
        search={"alpha": SearchRange(1e-2, 1e4, log=True), "n_knots": SearchRange(2, 20, log=True)},
    ),
    "regularized_boosting": Estimator(
        build="flywheel_ml.model.pipelines.estimators:regularized_boosting",
        tasks=ALL,
        search={
            "learning_rate": SearchRange(0.01, 0.2, log=True),
            "max_iter": SearchRange(50, 400, log=True),
            "max_leaf_nodes": SearchRange(3, 31, log=True),
            "min_samples_leaf": SearchRange(3, 100, log=True),
            "l2_regularization": SearchRange(0.1, 100.0, log=True),
        },
    ),
    "random_forest": Estimator(
        build="flywheel_ml.model.pipelines.estimators:random_forest",
        tasks=ALL,
        search={
            "n_estimators": SearchRange(50, 200),
            "max_leaf_nodes": SearchRange(100, 2000, log=True),
            "min_samples_leaf": SearchRange(1, 50, log=True),
            "max_features": SearchRange(0.1, 1.0),
        },
    ),
    "hist_gradient_boosting": Estimator(
        build="flywheel_ml.model.pipelines.estimators:hist_gradient_boosting",
        tasks=ALL,
        search={
            "learning_rate": SearchRange(0.02, 0.3, log=True),
            "max_iter": SearchRange(50, 400, log=True),
            "max_leaf_nodes": SearchRange(7, 127, log=True),
            "min_samples_leaf": SearchRange(3, 100, log=True),
            "l2_regularization": SearchRange(1e-3, 10.0, log=True),
        },
    ),
    "mlp": Estimator(
        build="flywheel_ml.model.pipelines.estimators:mlp",
        tasks=ALL,
        search={
            "hidden_layer_sizes": {"32": (32,), "64-32": (64, 32), "128": (128,), "128-64": (128, 64)},
            "alpha": SearchRange(1e-5, 1.0, log=True),
            "learning_rate_init": SearchRange(3e-4, 0.03, log=True),
            "max_steps": SearchRange(1000, 10_000, log=True),
        },
    ),
}
"""The library's estimators, from the simplest to the most complex; the first wins a tie."""


def list_estimators(catalog: Mapping[str, Estimator], task: Task) -> tuple[str, ...]:
    """Names of the estimators that support a task, the simplest first."""
    return tuple(name for name, estimator in catalog.items() if task in estimator.tasks)
