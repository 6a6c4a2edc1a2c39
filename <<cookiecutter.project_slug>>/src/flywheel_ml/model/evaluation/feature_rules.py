"""Rules for the features of a model: which columns it may use, and what computing each feature may cost."""

from collections.abc import Callable
from time import perf_counter

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import GateParams
from flywheel_ml.model.evaluation.candidate import Candidate, MissingMeasure

ROUNDS = 3


def measure_feature_cost(opened: Bundle, columns: Columns) -> dict[str, float]:
    """Measure the microseconds a row of each input column and derived feature, in the best of several rounds.

    Args:
        opened: the bundle.
        columns: its input columns, n_rows; the costs are those of a batch of this size.
    """
    n_rows = len(next(iter(columns.values())))
    compute: dict[str, Callable[[Columns], object]] = {
        column.name: _narrow(opened.contract, column.name).encode for column in opened.contract.inputs
    }
    compute |= opened.derived
    return {
        name: min(_time(function, columns) for _ in range(ROUNDS)) * 1e6 / n_rows for name, function in compute.items()
    }


def check_cost(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """Computing any single feature stays within its limit."""
    costs = candidate.feature_us
    if not costs:
        raise MissingMeasure("the cost of features was not measured")
    worst = max(costs, key=lambda name: costs[name])
    return costs[worst] <= params.max_feature_us, (
        f"the slowest of {len(costs)} features is '{worst}': {costs[worst]:.2g} µs a row, "
        f"allowed {params.max_feature_us:g} µs"
    )


def check_permitted(candidate: Candidate, params: GateParams) -> tuple[bool, str]:
    """The model uses no column that params.yaml forbids."""
    used = candidate.input_columns
    if used is None:
        raise MissingMeasure("the columns of the model are not known")
    found = [name for name in params.forbidden_columns if name in used]
    if found:
        return False, f"it uses the forbidden column '{found[0]}'; give it the role ignored in contract.yaml"
    return True, f"{len(used)} columns, none of the {len(params.forbidden_columns)} forbidden ones"


def _narrow(contract: Contract, name: str) -> Featurizer:
    """Build the featurizer of one column. The row's time stays, because other datetimes count from it."""
    kept = tuple(
        column.model_copy(update={"datetime_features": ()}) if column.role == "time" and column.name != name else column
        for column in contract.columns
        if column.name == name or column.role in ("target", "time")
    )
    return Featurizer(contract.model_copy(update={"columns": kept}))


def _time(function: Callable[[Columns], object], columns: Columns) -> float:
    start = perf_counter()
    function(columns)
    return perf_counter() - start
