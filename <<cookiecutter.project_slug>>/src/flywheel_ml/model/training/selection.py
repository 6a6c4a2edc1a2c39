"""Chooses the estimator: candidates compete on out-of-fold predictions, and the simplest of the best wins.

Small tables use repeated cross-validation within the training rows, large ones a single fit judged on validation rows.
Groups stay together and time runs forward. Every budget counts rows and fits, never seconds, so the same rows and
parameters make the same choice on any machine.
"""

import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline

from flywheel_ml.core.catalog import LINEAR, STANDARD_ESTIMATORS, list_estimators
from flywheel_ml.core.contract import Contract, Task
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import TrainParams
from flywheel_ml.model.pipelines import estimators, preprocessing
from flywheel_ml.model.pipelines.estimators import Rows
from flywheel_ml.model.pipelines.fitted import FittedModel

FOLDS, LARGE_FOLDS = 5, 3
MAX_REPEATS = 4
SMALL_ROWS = 10_000
"""Training rows up to which candidates are cross-validated."""
BUDGET = 16.0
"""What cross-validation may cost in all, in units of `estimate_cost`; about a second each on two idle cores."""
MAX_FULL_FIT = 3.0
"""On a large table, fits of gradient boosting that one fit of a candidate may cost."""
MAX_VALIDATION_ROWS = 20_000
TIME_BLOCKS = 20
"""Consecutive rows of a table with times are not independent: standard errors count blocks of them."""
EPSILON = 1e-15


class CandidateEstimator(NamedTuple):
    """A candidate: an estimator, and whether its trees split listed categories into sets."""

    estimator: str
    sets: bool = False

    @property
    def name(self) -> str:
        """For people and reports."""
        return f"{self.estimator} (category sets)" if self.sets else self.estimator

    def params(self, params: TrainParams) -> TrainParams:
        """The training parameters that fit this candidate."""
        changed: dict[str, Any] = {"estimator": self.estimator}
        if self.estimator == "hist_gradient_boosting":
            categories = "sets" if self.sets else "order"
            changed[self.estimator] = params.hist_gradient_boosting.model_copy(update={"categories": categories})
        return params.model_copy(update=changed)


class Score(NamedTuple):
    """Result of a candidate. Losses are the mean log loss, or the mean squared error.

    `difference` is its mean loss minus that of the best candidate on the same rows, `standard_error` that of this
    paired difference. `seconds` are for people: they decide nothing and are kept out of the bundle.
    """

    name: str
    loss: float
    difference: float
    standard_error: float
    fits: int
    seconds: float


def ignore_score(_: Score) -> None:
    """Ignore a score; the default callback."""


class OutOfFold(NamedTuple):
    """Predictions for rows that the predicting model had not seen.

    Attributes:
        rows: int [n], places of the rows among training rows, then validation rows.
        truth: float [n], see `Contract.encode_target`.
        weights: float [n].
        clusters: int [n]; rows that depend on each other share one.
        chose: bool [n], whether a row helped to choose the candidate that predicts it.
        answers: float [n, n_classes] of probabilities, or [n, 1] of values.
        linear: as `answers`, of the linear baseline.
        prior: as `answers`, of always answering the class shares or the mean of the rows that the model was fitted on.
    """

    rows: np.ndarray
    truth: np.ndarray
    weights: np.ndarray
    clusters: np.ndarray
    chose: np.ndarray
    answers: np.ndarray
    linear: np.ndarray
    prior: np.ndarray

    def take(self, wanted: np.ndarray) -> "OutOfFold":
        """The rows at these positions, or where this is true."""
        return OutOfFold(*(values[wanted] for values in self))

    @classmethod
    def join(cls, parts: Sequence["OutOfFold"]) -> "OutOfFold":
        """Concatenate the parts; their clusters stay separate."""
        first, moved = 0, []
        for part in parts:
            moved.append(part._replace(clusters=part.clusters + first))
            first = int(moved[-1].clusters.max()) + 1
        return cls(*(np.concatenate(values) for values in zip(*moved, strict=True)))


class Selection(NamedTuple):
    """The winner, every candidate's score in order of complexity, and those that were too costly for the table."""

    winner: CandidateEstimator
    scores: tuple[Score, ...]
    too_costly: tuple[str, ...]
    method: str
    out_of_fold: OutOfFold
    fitted: FittedModel | None = None
    """The winner, where it was fitted on all training rows already."""

    def report(self) -> dict[str, Any]:
        """Return the reproducible part of the result: everything except the seconds."""
        return {
            "method": self.method,
            "chosen": self.winner.name,
            "candidates": [
                {key: value for key, value in score._asdict().items() if key != "seconds"} for score in self.scores
            ],
            "too_costly": list(self.too_costly),
        }


class Fold(NamedTuple):
    """Places of rows that a model is fitted on, and of rows that it predicts."""

    fit: np.ndarray
    predict: np.ndarray


class TrainingTable(NamedTuple):
    """Encoded rows with all that selection asks of them.

    Attributes:
        rows: model inputs and labels, n_rows.
        weights: float [n_rows], 1 where the contract has no weights.
        groups: int [n_rows], rows that belong together; None where all are independent or in order of time.
        in_time: whether the rows are in order of time.
        row_indices: int [n_rows], positions of the rows in their part of the split.
    """

    rows: Rows
    weights: np.ndarray
    groups: np.ndarray | None
    in_time: bool
    row_indices: np.ndarray

    @property
    def size(self) -> int:
        """n_rows."""
        return len(self.rows.labels)

    @property
    def clusters(self) -> np.ndarray:
        """Cluster of each row: a block of consecutive rows if ordered by time, its group, or the row alone."""
        if self.in_time:
            return np.arange(self.size) * TIME_BLOCKS // self.size
        return np.arange(self.size) if self.groups is None else self.groups

    def take(self, row_indices: np.ndarray) -> "TrainingTable":
        """The rows at these positions, int [n]."""
        groups = None if self.groups is None else self.groups[row_indices]
        return TrainingTable(
            self.rows.take(row_indices), self.weights[row_indices], groups, self.in_time, self.row_indices[row_indices]
        )

    def halves(self) -> tuple["TrainingTable", "TrainingTable"]:
        """The earlier half and the later, or where rows have no order whole groups by turns."""
        later = np.arange(self.size) * 2 >= self.size if self.in_time else self.clusters % 2 == 1
        return self.take(np.flatnonzero(~later)), self.take(np.flatnonzero(later))

    @classmethod
    def encode(
        cls, frame: pl.DataFrame, contract: Contract, featurizer: Featurizer, by: str, group: str | None
    ) -> "TrainingTable":
        """From n_rows × contract columns; `by` and `group` are those of the split."""
        from flywheel_ml.data import tables

        truth = tables.encode_target(frame, contract)
        labels = truth if contract.task == "regression" else truth.astype(np.int64)
        encoded = estimators.to_frame(featurizer.encode(tables.to_columns(frame, contract.inputs)))
        groups = None
        if group is not None:
            groups = frame[group].rank("dense").to_numpy().astype(np.int64)
        return cls(
            Rows(encoded, labels), read_sample_weights(frame, contract), groups, by == "time", np.arange(frame.height)
        )


def read_sample_weights(frame: pl.DataFrame, contract: Contract) -> np.ndarray:
    """float64 [n_rows]: the column with role weight, or ones."""
    if contract.weight is None:
        return np.ones(frame.height)
    found: np.ndarray = frame[contract.weight.name].cast(pl.Float64).to_numpy()
    return found


def list_candidates(task: Task, params: TrainParams, featurizer: Featurizer) -> list[CandidateEstimator]:
    """List the candidates, simplest first.

    Raises:
        ConfigError: a candidate does not fit the task, or needs a package that is not installed.
    """
    known = list_estimators(params.catalog, task)
    chosen = (params.candidates or known) if params.estimator == "auto" else (params.estimator,)
    found = []
    for name in sorted(chosen, key=lambda name: known.index(name) if name in known else -1):
        key = "train.candidates" if params.estimator == "auto" else "train.estimator"
        estimators.check_available(name, task, params.catalog, key)
        in_sets = name == "hist_gradient_boosting" and bool(preprocessing.find_set_columns(featurizer))
        ways = params.hist_gradient_boosting.categories
        if not in_sets or ways != "sets":
            found.append(CandidateEstimator(name))
        if in_sets and ways != "order":
            found.append(CandidateEstimator(name, sets=True))
    return found


def compute_row_losses(task: Task, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """float64 [n_rows]: log loss of the true class, or squared error."""
    if task == "regression":
        squares: np.ndarray = (answers[:, 0].astype(np.float64) - truth) ** 2
        return squares
    likely = answers[np.arange(len(truth)), truth.astype(np.intp)].astype(np.float64)
    losses: np.ndarray = -np.log(np.clip(likely, EPSILON, None))
    return losses


def compute_mean_and_error(values: np.ndarray, weights: np.ndarray, clusters: np.ndarray) -> tuple[float, float, int]:
    """Weighted mean of n_rows, its standard error, and the number of clusters.

    Cluster-robust (Liang & Zeger 1986, "Longitudinal data analysis using generalized linear models"): residuals are
    summed within each cluster, with the usual correction G / (G − 1).
    """
    total = weights.sum()
    mean = float((weights * values).sum() / total)
    _, cluster_index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster_index, weights=weights * (values - mean))
    count = len(sums)
    if count < 2:
        return mean, float("inf"), count
    return mean, float(np.sqrt(count / (count - 1) * (sums**2).sum()) / total), count


Key = TypeVar("Key", bound=Hashable)


def choose(
    losses: Mapping[Key, np.ndarray], weights: np.ndarray, clusters: np.ndarray
) -> tuple[Key, list[tuple[float, float, float]]]:
    """The simplest candidate within one standard error of the paired difference to the best.

    After Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3, with paired differences.

    Args:
        losses: float [n_rows] of each candidate, the simplest first.

    Returns:
        The winner; and of each candidate mean loss, mean difference to the best, and standard error of that.
    """
    means = {name: float(np.average(values, weights=weights)) for name, values in losses.items()}
    best = min(means, key=lambda name: means[name])
    all_figures = []
    winner = None
    for name, values in losses.items():
        difference, error, _ = compute_mean_and_error(values - losses[best], weights, clusters)
        all_figures.append((means[name], difference, 0.0 if name == best else error))
        if winner is None and (name == best or difference <= error):
            winner = name
    assert winner is not None
    return winner, all_figures


def estimate_cost(
    candidate: CandidateEstimator, n_rows: int, n_classes: int, featurizer: Featurizer, params: TrainParams
) -> float:
    """What one fit costs, in about seconds on two idle cores; a function of sizes only.

    The coefficients were set by eye to processor seconds of 13 public tables of 130 to 12,000 rows.
    """
    if (
        candidate.estimator not in STANDARD_ESTIMATORS
    ):  # The cost of a project's own estimator is unknown; assume that of boosting.
        candidate = CandidateEstimator("hist_gradient_boosting")
    width, columns = estimators.count_linear_columns(featurizer), len(featurizer.numeric) + len(featurizer.categorical)
    many_classes = 1 + max(0, n_classes - 8) / 36
    if candidate.estimator in ("hist_gradient_boosting", "regularized_boosting"):
        chosen: Any = params.parameters_of(candidate.estimator)
        leaves = min(chosen.max_leaf_nodes, n_rows / 40, n_rows / (6 * max(2, n_classes)))
        tree = 0.0005 + leaves * (6e-5 + n_rows * columns * 4.5e-10)
        return float(chosen.max_iter * (n_classes if n_classes > 2 else 1) * tree)
    if candidate.estimator == "random_forest":
        forest = params.random_forest
        tree = 0.0006 + n_rows * columns * forest.max_features * 1.4e-7
        return float(forest.n_estimators * tree * many_classes)
    if candidate.estimator == "mlp":
        return float(params.mlp.max_steps * 0.00025 * many_classes)
    if candidate.estimator.startswith("spline"):
        width += len(featurizer.numeric) * getattr(params, candidate.estimator).n_knots
    return 0.03 + n_rows * width * 1e-7


def select(
    table: TrainingTable,
    validation: TrainingTable | None,
    contract: Contract,
    params: TrainParams,
    featurizer: Featurizer,
    seed: int,
    arrange: Callable[[Pipeline], Pipeline],
    on_score: Callable[[Score], None],
) -> Selection:
    """Compare the candidates and select one.

    Args:
        table: training rows.
        validation: rows to compare on; None for cross-validation within the training rows.
        arrange: function applied to each unfitted pipeline.
        on_score: called with each candidate's score as it comes, without its paired difference.
    """
    task, n_rows = contract.task, len(table.rows.labels)
    n_classes = max(1, len(contract.classes))
    candidates = list_candidates(task, params, featurizer)
    linear = CandidateEstimator(LINEAR[task])
    all_candidates = candidates if linear in candidates else [linear, *candidates]
    prices = {one: estimate_cost(one, n_rows, n_classes, featurizer, params) for one in all_candidates}

    def build(one: CandidateEstimator) -> Pipeline:
        return arrange(estimators.build(one.estimator, task, one.params(params), featurizer, seed))

    is_crossed = validation is None
    if validation is None:
        affordable, repeats = _select_affordable(prices, candidates, linear)
        splits = [list(split_folds(table, task, seed + repeat)) for repeat in range(1 if table.in_time else repeats)]
        method = f"{len(splits[0])}-fold cross-validation" + (" forward in time" if table.in_time else "")
        method += f", repeated {len(splits)} times" if len(splits) > 1 else ""
        judging = table
        found = {one: _cross_validate(one, build, table, splits, task, n_classes, on_score) for one in affordable}
    else:
        limit = MAX_FULL_FIT * estimate_cost(
            CandidateEstimator("hist_gradient_boosting"), n_rows, n_classes, featurizer, params
        )
        affordable = [one for one in all_candidates if len(candidates) == 1 or one == linear or prices[one] <= limit]
        method = "validation rows"
        judging = validation.take(estimators.pick_evenly_spaced(validation.rows.labels, MAX_VALIDATION_ROWS, task))
        found = {one: _fit_once(one, build, table, judging, params, task, n_classes, on_score) for one in affordable}
    competing = {one: found[one] for one in affordable if one in candidates}
    answered = np.flatnonzero(~np.isnan(found[linear].answers[0][:, 0]))
    truth, weights = judging.rows.labels[answered].astype(np.float64), judging.weights[answered]
    clusters = judging.clusters[answered]
    losses = {
        one: np.mean([compute_row_losses(task, truth, answers[answered]) for answers in result.answers], axis=0)
        for one, result in competing.items()
    }
    winner, all_figures = choose(losses, weights, clusters)
    scores = tuple(
        Score(one.name, *figures, found[one].fits, found[one].seconds)
        for one, figures in zip(competing, all_figures, strict=True)
    )
    unbiased = _choose_by_other_folds(losses, weights, clusters) if is_crossed else list(losses).index(winner)
    first = np.stack([result.answers[0][answered] for result in competing.values()])
    out = OutOfFold(
        answered if is_crossed else judging.row_indices[answered] + n_rows,
        truth,
        weights,
        clusters,
        np.full(len(truth), not is_crossed and len(competing) > 1),
        first[unbiased, np.arange(len(truth))],
        found[linear].answers[0][answered],
        found[linear].prior[answered],
    )
    if not is_crossed:
        out = OutOfFold.join([_cross_fit(winner, linear, build, table, task, n_classes, seed), out])
    dropped = tuple(one.name for one in candidates if one not in competing)
    return Selection(winner, scores, dropped, method, out, found[winner].fitted)


def _cross_fit(
    winner: CandidateEstimator,
    linear: CandidateEstimator,
    build: Callable[[CandidateEstimator], Pipeline],
    table: TrainingTable,
    task: Task,
    n_classes: int,
    seed: int,
) -> OutOfFold:
    """Training rows of a large table, predicted by models that were fitted on others; none of them chose the winner."""
    splits = [list(split_folds(table, task, seed, LARGE_FOLDS))]
    found = _cross_validate(winner, build, table, splits, task, n_classes, ignore_score)
    linear_result = (
        found if winner == linear else _cross_validate(linear, build, table, splits, task, n_classes, ignore_score)
    )
    rows = np.flatnonzero(~np.isnan(found.answers[0][:, 0]))
    return OutOfFold(
        rows,
        table.rows.labels[rows].astype(np.float64),
        table.weights[rows],
        table.clusters[rows],
        np.zeros(len(rows), dtype=bool),
        found.answers[0][rows],
        linear_result.answers[0][rows],
        found.prior[rows],
    )


class _Result(NamedTuple):
    """Of one candidate: answers of each repeat [n_rows, n_outputs] (NaN where there is none), and the prior's."""

    answers: list[np.ndarray]
    prior: np.ndarray
    fits: int
    seconds: float
    fitted: FittedModel | None = None


def _select_affordable(
    prices: Mapping[CandidateEstimator, float], candidates: Sequence[CandidateEstimator], linear: CandidateEstimator
) -> tuple[list[CandidateEstimator], int]:
    """The candidates whose cross-validation fits the budget (the dearest go first), and how often it is repeated."""
    affordable = list(prices)
    while len(affordable) > 2 and FOLDS * sum(prices[one] for one in affordable) > BUDGET:
        affordable.remove(max((one for one in affordable if one != linear), key=lambda one: prices[one]))
    if len(candidates) == 1:
        return list(prices), 1
    spent = FOLDS * sum(prices[one] for one in affordable)
    return affordable, max(1, min(MAX_REPEATS, int(BUDGET / spent)))


def split_folds(table: TrainingTable, task: Task, seed: int, count: int = FOLDS) -> Iterator[Fold]:
    """Cross-validation within a table: by class where there are any, by group, or forward in time."""
    n_rows, labels = len(table.rows.labels), table.rows.labels
    if table.in_time:
        edges = np.linspace(0, n_rows, count + 2).astype(np.intp)
        for at in range(1, count + 1):
            yield Fold(np.arange(edges[at]), np.arange(edges[at], edges[at + 1]))
        return
    if table.groups is not None:
        count = min(count, len(np.unique(table.groups)))
        make: Any = GroupKFold if task == "regression" else StratifiedGroupKFold
        splitter = make(count, shuffle=True, random_state=seed)
    else:
        splitter = (KFold if task == "regression" else StratifiedKFold)(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        for expected in preprocessing.EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", expected, UserWarning)
        parts = list(splitter.split(np.zeros(n_rows), labels, table.groups))
    for fit, predict in parts:
        yield Fold(fit, predict)


def _cross_validate(
    one: CandidateEstimator,
    build: Callable[[CandidateEstimator], Pipeline],
    table: TrainingTable,
    splits: list[list[Fold]],
    task: Task,
    n_classes: int,
    on_score: Callable[[Score], None],
) -> _Result:
    start = time.perf_counter()
    n_rows, repeats = len(table.rows.labels), []
    prior = np.full((n_rows, n_classes), np.nan)
    for repeat in splits:
        answers = np.full((n_rows, n_classes), np.nan)
        for fold in repeat:
            fitted = fit(build(one), table, fold.fit, task)
            answers[fold.predict] = predict(fitted, table.rows.frame[fold.predict], task, n_classes)
            if repeat is splits[0]:
                prior[fold.predict] = compute_prior(table, fold.fit, task, n_classes)
        repeats.append(answers)
    found = _Result(repeats, prior, len(splits) * len(splits[0]), time.perf_counter() - start)
    seen = ~np.isnan(repeats[0][:, 0])
    loss = np.mean([compute_row_losses(task, table.rows.labels[seen], answers[seen]).mean() for answers in repeats])
    on_score(Score(one.name, float(loss), 0.0, 0.0, found.fits, found.seconds))
    return found


def _fit_once(
    one: CandidateEstimator,
    build: Callable[[CandidateEstimator], Pipeline],
    table: TrainingTable,
    judging: TrainingTable,
    params: TrainParams,
    task: Task,
    n_classes: int,
    on_score: Callable[[Score], None],
) -> _Result:
    start = time.perf_counter()
    labels = table.rows.labels
    boosts = one.estimator in ("hist_gradient_boosting", "regularized_boosting")
    chosen = np.arange(len(labels)) if boosts else estimators.pick_evenly_spaced(labels, params.baseline_rows, task)
    fitted = fit(build(one), table, chosen, task, judging.rows)
    answers = predict(fitted, judging.rows.frame, task, n_classes)
    prior = np.broadcast_to(compute_prior(table, np.arange(len(labels)), task, n_classes), answers.shape)
    whole = fitted if len(chosen) == len(labels) else None
    found = _Result([answers], prior, 1, time.perf_counter() - start, whole)
    on_score(
        Score(
            one.name, float(compute_row_losses(task, judging.rows.labels, answers).mean()), 0.0, 0.0, 1, found.seconds
        )
    )
    return found


def fit(
    pipeline: Pipeline, table: TrainingTable, row_indices: np.ndarray, task: Task, stopping: Rows | None = None
) -> FittedModel:
    """The pipeline fitted on the rows at these positions; `stopping` are those that stop boosting early."""
    rows = table.rows.take(row_indices)
    weights = table.weights[row_indices]
    return estimators.fit_model(pipeline, rows, task, None if (weights == 1).all() else weights, stopping)


def predict(fitted: Any, frame: pl.DataFrame, task: Task, n_classes: int) -> np.ndarray:
    """float64 [n_rows, n_classes]; a class that the fitted rows lack gets no probability."""
    answers = estimators.predict(fitted, frame, task)
    if task == "regression" or answers.shape[1] == n_classes:
        return answers.astype(np.float64)
    whole = np.zeros((len(answers), n_classes))
    whole[:, fitted.classes_.astype(np.intp)] = answers
    return whole


def compute_prior(table: TrainingTable, row_indices: np.ndarray, task: Task, n_classes: int) -> np.ndarray:
    """What is answered without a model: the mean of these rows [1], or the share of each class [n_classes]."""
    labels, weights = table.rows.labels[row_indices], table.weights[row_indices]
    if task == "regression":
        return np.array([np.average(labels, weights=weights)])
    shares = np.bincount(labels, weights=weights, minlength=n_classes)
    found: np.ndarray = shares / shares.sum()
    return found


def _choose_by_other_folds(
    losses: Mapping[CandidateEstimator, np.ndarray], weights: np.ndarray, clusters: np.ndarray
) -> np.ndarray:
    """Place of a candidate for each row, int [n_rows]: the one that the other folds choose.

    So no row influences which candidate makes its own prediction.
    """
    chosen = np.zeros(len(clusters), dtype=np.intp)
    if len(losses) == 1:
        return chosen
    positions = {one: at for at, one in enumerate(losses)}
    fold = clusters % FOLDS
    for at in np.unique(fold):
        others = fold != at
        winner, _ = choose({one: found[others] for one, found in losses.items()}, weights[others], clusters[others])
        chosen[~others] = positions[winner]
    return chosen


def is_default_too_costly(table: TrainingTable, contract: Contract, featurizer: Featurizer) -> bool:
    """Whether scikit-learn's default boosting, only as a reference, would cost a small table its whole budget."""
    defaults = TrainParams(estimator="hist_gradient_boosting")
    price = estimate_cost(
        CandidateEstimator("hist_gradient_boosting"), table.size, len(contract.classes), featurizer, defaults
    )
    return table.size <= SMALL_ROWS and price > BUDGET / FOLDS
