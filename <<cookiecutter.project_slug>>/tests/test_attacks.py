"""Attacks on the promises about data, training and models. Those that pass are evidence of `make ml-test-score`."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import Bundle, Slice
from flywheel_ml.core.contract import Column, Columns, Contract
from flywheel_ml.core.metrics import HEADLINE
from flywheel_ml.core.params import Params
from flywheel_ml.data import privacy
from flywheel_ml.data.upstream_schema import compare_schemas
from flywheel_ml.data.validate import find_violations
from flywheel_ml.model.evaluation import gate, inclusion, speed, stability
from flywheel_ml.model.evaluation.compute import ComputeFigures, find_regressions, run_calibration_loop
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.faulty_models import break_model
from flywheel_ml.testing.servers import ServingFolder
from flywheel_ml.utils.errors import IntegrityError

from << cookiecutter.package_name >>.project import PROJECT


@pytest.mark.attack("row outside the contract")
def test_row_without_a_required_value_is_found(table: pl.DataFrame, contract: Contract) -> None:
    name = contract.target.name
    broken = table.with_columns(pl.when(pl.int_range(pl.len()) != 3).then(pl.col(name)).alias(name))
    assert [(one.column, one.rows) for one in find_violations(broken, contract)] == [(name, 1)]


@pytest.mark.attack("personal data")
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("write to jane.roe@example.org, please", "e-mail address"),
        ("call +44 20 7946 0958", "phone number"),
        ("paid with 4111 1111 1111 1111", "card number"),
    ],
)
def test_undeclared_personal_data_are_found(table: pl.DataFrame, contract: Contract, value: str, kind: str) -> None:
    note = Column(name="an added note", type="string", role="ignored")
    wider = contract.model_copy(update={"columns": (*contract.columns, note)})
    found = privacy.report_table(table.with_columns(pl.lit(value).alias(note.name)), wider, "")
    assert found["undeclared"] == [note.name]
    assert found["columns"][note.name] == {kind: 1}


@pytest.mark.attack("new feature")
def test_new_feature_is_one_function(
    tmp_path: Path,
    table: pl.DataFrame,
    columns: Columns,
    contract: Contract,
    params: Params,
    record_property: Callable[[str, object], None],
) -> None:
    """From the function to a model that predicts with it."""
    source = contract.inputs[0]

    def added_feature(*values: np.ndarray) -> np.ndarray:
        return np.arange(len(values[0])) * 0.0

    start = time.perf_counter()
    feature = _take(added_feature, source)
    path = make_bundle(tmp_path / "bundle", table.gather_every(2), contract, params, (*PROJECT.features, feature))
    opened = Bundle.open(path, features=(*PROJECT.features, feature))
    assert "added_feature" in opened.manifest.derived
    assert np.isfinite(opened.predict(columns).scores).all()
    record_property("seconds", round(time.perf_counter() - start, 2))


@pytest.mark.attack("unseeded training")
def test_training_twice_gives_equal_bytes(
    tmp_path: Path, bundle_path: Path, table: pl.DataFrame, contract: Contract, params: Params
) -> None:
    again = make_bundle(tmp_path / "bundle", table, contract, params, PROJECT.features)
    assert bundle.verify(again) == bundle.verify(bundle_path)


@pytest.mark.attack("tampered bundle")
def test_tampered_bundle_never_loads(tmp_path: Path, bundle_path: Path) -> None:
    folder = ServingFolder(tmp_path, bundle_path)
    folder.add("1")
    model = folder.bundle("1") / bundle.MODEL
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="was changed"):
        Bundle.open(folder.bundle("1"), features=PROJECT.features)


@pytest.mark.attack("NaN")
def test_model_that_answers_nan_is_refused(tmp_path: Path, bundle_path: Path, columns: Columns, params: Params) -> None:
    folder = ServingFolder(tmp_path, bundle_path)
    folder.add("1", model=break_model((bundle_path / bundle.MODEL).read_bytes(), "NaN"))
    opened = Bundle.open(folder.bundle("1"), features=PROJECT.features)
    candidate = gate.Candidate(opened.manifest, unstable=stability.find_unstable(opened, columns))
    assert not stability.check_stability(candidate, params.gates)[0]
    with pytest.raises(IntegrityError, match="NaN"):
        opened.predict(columns)


@pytest.mark.attack("weak slice")
def test_weak_slice_is_refused(bundle: Bundle, params: Params) -> None:
    manifest = bundle.manifest
    weak = {**manifest.metrics["test"], HEADLINE[manifest.task]: 0.0 if manifest.classes else -9.0}
    if not manifest.classes:
        weak["rmse"] *= 9
    slices = (*manifest.slices, Slice(column="any", value="weak", rows=10_000, enough=True, metrics=weak))
    strict = params.gates.model_copy(update={"min_slice_score": 0.2})
    passed, reason = gate.check_slices(gate.Candidate(manifest.model_copy(update={"slices": slices})), strict)
    assert not passed
    assert "weak" in reason


@pytest.mark.attack("unequal groups")
def test_model_that_fails_one_group_is_refused(bundle: Bundle, params: Params) -> None:
    groups = tuple(_group(name, quality) for name, quality in (("first", 0.9), ("second", 0.2)))
    candidate = gate.Candidate(bundle.manifest.model_copy(update={"slices": groups}), groups=("group",))
    limits = params.gates.model_copy(update={"max_group_gap": 0.3})
    assert not inclusion.check_groups(candidate, limits)[0]
    equal = bundle.manifest.model_copy(update={"slices": (groups[0], _group("second", 0.9))})
    assert inclusion.check_groups(candidate._replace(manifest=equal), limits)[0]


@pytest.mark.attack("creeping latency")
def test_slower_model_is_a_regression(bundle_path: Path, columns: Columns, params: Params) -> None:
    few = {name: values[:20] for name, values in columns.items()}
    quick, slow = (
        ComputeFigures(
            key="test",
            calibration_ms=run_calibration_loop(),
            latency_cpu_ms=speed.measure_latency_ms(
                kind.open(bundle_path, features=PROJECT.features), few, time.thread_time
            ),
        )
        for kind in (Bundle, SlowBundle)
    )
    limit = params.monitor.max_compute_increase
    assert list(find_regressions(quick, quick, limit)) == []
    assert any("latency" in one for one in find_regressions(quick, slow, limit))


@pytest.mark.attack("changed dependency")
@pytest.mark.parametrize("change", ["removed", "retyped", "added"])
def test_change_of_the_upstream_schema_is_reported(contract: Contract, change: str) -> None:
    before: dict[str, str] = {column.name: column.type for column in contract.columns}
    first = contract.columns[0].name
    changes: dict[str, dict[str, str]] = {
        "removed": {name: kind for name, kind in before.items() if name != first},
        "retyped": {**before, first: "another type"},
        "added": {**before, "an added column": "string"},
    }
    assert getattr(compare_schemas(before, changes[change]), change)


class SlowBundle(Bundle):
    """A bundle that needs ten times as long for each request."""

    def predict(self, columns: Columns) -> bundle.Predictions:
        """Predict ten times."""
        return [super(SlowBundle, self).predict(columns) for _ in range(10)][-1]


def _take(function: Callable[..., np.ndarray], column: Column) -> Callable[..., np.ndarray]:
    """Let a function name a column as its parameter, as one in features.py does."""
    import inspect

    from flywheel_ml.core.features import to_parameter_name

    parameter = inspect.Parameter(to_parameter_name(column.name), inspect.Parameter.POSITIONAL_OR_KEYWORD)
    function.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    return function


def _group(name: str, quality: float) -> Slice:
    """A group of which a model finds this share, or whose error is as much lower."""
    measures = {"recall": quality, "accuracy": quality, "mae": 10 * (1 - quality), "prevalence": 0.5}
    return Slice(column="group", value=name, rows=10_000, enough=True, metrics=measures)
