"""Better parameters for the estimator, searched by Optuna on the validation rows, where `tune.trials` asks for it.

What a trial tries is a function of the trials completed before it and of nothing else: each is drawn by a sampler of
its own, whose seed is that of params.yaml plus the number of those trials. Completed trials are kept in a SQLite file
named by the hash of all that their losses depend on, so a search that was killed goes on where it was and chooses as
one that never stopped. What was in progress is forgotten.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import polars as pl

from flywheel_ml.core import metrics, paths
from flywheel_ml.core.catalog import Choice, SearchRange
from flywheel_ml.core.contract import Contract
from flywheel_ml.core.features import Feature, Featurizer
from flywheel_ml.core.params import Params, TrainParams
from flywheel_ml.data import tables
from flywheel_ml.model.pipelines import estimators
from flywheel_ml.utils import formatting
from flywheel_ml.utils.errors import Busy
from flywheel_ml.utils.files import canonical_json, read_json, sha256_file, sha256_text, write_json

PROGRESS_SECONDS = 2.0


class Trial(NamedTuple):
    """A tuning trial: parameters as recorded (none: those of params.yaml), loss on the validation rows, and seconds.

    The seconds are not known where DVC restored what another machine tried.
    """

    parameters: Mapping[str, Any]
    loss: float
    seconds: float | None


class Search(NamedTuple):
    """All trials in order, and the key under which they are study_store."""

    key: str
    trials: list[Trial]

    @property
    def best(self) -> Trial:
        """The lowest loss, the earliest of several."""
        return min(self.trials, key=lambda trial: trial.loss)

    def report(self) -> dict[str, Any]:
        """Return the reproducible part of the result: everything except the seconds."""
        return {
            "key": self.key,
            "trials": [{"parameters": dict(t.parameters), "loss": t.loss} for t in self.trials],
            "best": self.trials.index(self.best),
        }


def search(
    train: pl.DataFrame,
    validation: pl.DataFrame,
    contract: Contract,
    params: Params,
    data: Mapping[str, str],
    features: Sequence[Feature] = (),
) -> Search:
    """Try `tune.trials` configurations, the first being that of params.yaml, on at most `tune.rows` rows.

    Args:
        train: n_rows × contract columns.
        data: sha256 of each part.
        features: the project's own.

    Raises:
        Busy: another process searches for the same.
    """
    task, featurizer = contract.task, Featurizer(contract, features)
    frames, truth = {}, {}
    for name, part in (("train", train), ("validation", validation)):
        frames[name] = estimators.to_frame(featurizer.encode(tables.to_columns(part, contract.inputs)))
        truth[name] = tables.encode_target(part, contract)
    labels = truth["train"] if task == "regression" else truth["train"].astype(np.int64)
    chosen = estimators.pick_evenly_spaced(labels, params.tune.max_rows, task)

    def loss(tried: TrainParams) -> float:
        pipeline = estimators.build(get_estimator_name(tried), task, tried, featurizer, params.seed)
        estimators.fit(pipeline, frames["train"][chosen], labels[chosen])
        return metrics.compute_loss(task, truth["validation"], estimators.predict(pipeline, frames["validation"], task))

    measure = formatting.METRIC_NAMES[metrics.LOSS[task]]
    return run(
        loss, params, _compute_key(params, contract, data), lambda text: print(f"  {measure} {text}", flush=True)
    )


def run(loss: Callable[[TrainParams], float], params: Params, key: str, log: Callable[[str], None]) -> Search:
    """Complete the trials that are kept under `key` to `tune.trials`; `loss` judges one configuration.

    Raises:
        Busy: another process completes them.
    """
    # A heavy import, needed only for tuning.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    paths.TUNING.mkdir(parents=True, exist_ok=True)
    path = paths.TUNING / f"{key[:16]}.db"
    try:
        lock = filelock.FileLock(path.with_suffix(".lock"))
        with lock.acquire(timeout=0):
            study_store = optuna.create_study(storage=f"sqlite:///{path}", study_name=key, load_if_exists=True)
            trials = _complete_trials(optuna, study_store, loss, params, log)
    except filelock.Timeout:
        raise Busy(f"another process is tuning with {path}; wait for it to end") from None
    write_json(path.with_suffix(".json"), {"seconds": [trial.seconds for trial in trials]})
    return Search(key, trials)


def apply_parameters(params: TrainParams, parameters: Mapping[str, Any]) -> TrainParams:
    """Replace the parameters of the estimator with those of a trial."""
    name = get_estimator_name(params)
    group = getattr(params, name)
    found = {key: _decode_value(params.catalog[name].search[key], value) for key, value in parameters.items()}
    return params.model_copy(update={name: type(group).model_validate(group.model_dump() | found)})


def get_estimator_name(params: TrainParams) -> str:
    """The estimator that is tuned; `Params` allows no trials with `auto`."""
    assert params.estimator != "auto"
    return params.estimator


def read_seconds(key: str) -> list[float]:
    """Seconds of each trial kept under `key`; empty where they are not known, as after a restore by DVC."""
    path = paths.TUNING / f"{key[:16]}.json"
    return list(read_json(path)["seconds"]) if path.is_file() else []


def _complete_trials(
    optuna: Any, study_store: Any, loss: Callable[[TrainParams], float], params: Params, log: Callable[[str], None]
) -> list[Trial]:
    wanted, space = (
        params.tune.trials,
        _build_distributions(optuna, params.train.catalog[get_estimator_name(params.train)].search),
    )
    done = [t for t in study_store.get_trials(deepcopy=False) if t.state is optuna.trial.TrialState.COMPLETE][:wanted]
    if done:
        log(f"{min(t.value for t in done):.4f} at best of {len(done)} trial(s) of an earlier run")
    reported, start, before = time.monotonic(), time.monotonic(), len(done)
    while len(done) < wanted:
        began = time.perf_counter()
        if done:
            sampler = optuna.samplers.TPESampler(seed=params.seed + len(done))
            study = optuna.create_study(sampler=sampler)
            study.add_trials(done)
            tried = study.ask(space).params
            try:
                value = loss(apply_parameters(params.train, tried))
            except (ValueError, FloatingPointError):
                # A failure counts as an infinite loss; only the parameters of params.yaml must work.
                value = math.inf
        else:
            tried, value = {}, loss(params.train)
        trial = optuna.trial.create_trial(
            value=value if math.isfinite(value) else math.inf,
            params=tried,
            distributions=space if tried else {},
            user_attrs={"seconds": round(time.perf_counter() - began, 3)},
        )
        study_store.add_trial(trial)
        done.append(trial)
        if time.monotonic() - reported > PROGRESS_SECONDS:
            reported = time.monotonic()
            left = (reported - start) / (len(done) - before) * (wanted - len(done))
            log(f"{min(t.value for t in done):.4f} at best of {len(done)}/{wanted} trials, about {left:.0f} s left")
    return [Trial(t.params, float(t.value), float(t.user_attrs["seconds"])) for t in done]


def _build_distributions(optuna: Any, search: Mapping[str, SearchRange | Choice]) -> dict[str, Any]:
    found = {}
    for key, space in search.items():
        if not isinstance(space, SearchRange):
            found[key] = optuna.distributions.CategoricalDistribution(list(space))
        elif isinstance(space.low, int):
            found[key] = optuna.distributions.IntDistribution(space.low, int(space.high), log=space.log)
        else:
            found[key] = optuna.distributions.FloatDistribution(space.low, space.high, log=space.log)
    return found


def _decode_value(space: SearchRange | Choice, recorded: Any) -> Any:
    return recorded if isinstance(space, SearchRange) else space[recorded]


def _compute_key(params: Params, contract: Contract, data: Mapping[str, str]) -> str:
    """sha256 of all that a trial's loss depends on: rows, parameters, space, code and libraries."""
    package = Path(__file__).parents[2]
    sources = [found for part in ("core", "data", "model", "utils") for found in (package / part).rglob("*.py")]
    train = params.train
    return sha256_text(
        canonical_json(
            {
                "data": dict(data),
                "contract": contract.fingerprint(),
                "seed": params.seed,
                "rows": params.tune.max_rows,
                "estimator": train.estimator,
                "parameters": getattr(train, train.estimator).model_dump(mode="json"),
                "space": repr(train.catalog[get_estimator_name(train)].search),
                "code": {path.relative_to(package).as_posix(): sha256_file(path) for path in sorted(sources)},
                "libraries": {name: version(name) for name in ("numpy", "optuna", "scikit-learn")},
            }
        )
    )
