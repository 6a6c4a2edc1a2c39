"""A bundle answers as scikit-learn does, in any batch size, in canonical bytes, and whole or not at all."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from sklearn.pipeline import Pipeline

from flywheel_ml.core import bundle
from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.features import Featurizer, Inputs
from flywheel_ml.core.params import Params
from flywheel_ml.model.packaging import package
from flywheel_ml.model.pipelines.fitted import FittedModel
from flywheel_ml.model.training import train
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.utils.errors import IntegrityError
from library.helpers import bundles, project
from library.model.pipelines.test_estimators import contract_of

BATCHES = (1, 2, 3, 10, 500)


@pytest.fixture(scope="module", params=["hist_gradient_boosting", "logistic_regression"])
def trained(
    request: pytest.FixtureRequest, table: pl.DataFrame, contract: Contract, params: Params
) -> tuple[train.TrainedModels, Params]:
    name: str = request.param
    chosen = params.model_copy(update={"train": params.train.model_copy(update={"estimator": name})})
    return train.train(table.head(1500), contract, chosen), chosen


def test_onnx_answers_as_scikit_learn_does_on_rows_it_never_saw(
    trained: tuple[train.TrainedModels, Params], table: pl.DataFrame, contract: Contract, tmp_path: Path
) -> None:
    chosen = trained[1]
    opened = Bundle.open(make_bundle(tmp_path / "bundle", table, contract, chosen))
    assert opened.manifest.estimator == chosen.train.estimator
    assert opened.manifest.parity < chosen.gates.parity_tolerance


def test_network_sure_of_itself_keeps_parity_when_calibrated(
    table: pl.DataFrame, contract: Contract, params: Params, tmp_path: Path
) -> None:
    """A temperature of 5 turns a probability of 4e-6 into 0.08, and its relative error into an absolute one."""
    sure = params.train.mlp.model_copy(update={"alpha": 1e-6})
    changes = {"estimator": "mlp", "mlp": sure, "calibration": "temperature"}
    chosen = params.model_copy(update={"train": params.train.model_copy(update=changes)})
    opened = Bundle.open(make_bundle(tmp_path / "bundle", table.head(2000), contract, chosen))
    calibration = opened.manifest.calibration
    assert calibration is not None
    assert calibration.slopes[0] < 0.3
    assert opened.manifest.parity < 1e-6


def test_the_same_pipeline_gives_the_same_graph_with_fixed_names(
    trained: tuple[train.TrainedModels, Params], contract: Contract
) -> None:
    featurizer = Featurizer(contract)
    content = package.to_onnx(trained[0].model, featurizer)
    assert content == package.to_onnx(trained[0].model, featurizer)
    graph = onnx.load_from_string(content)
    assert graph.graph.name == "model"
    assert [opset.domain for opset in graph.opset_import] == sorted(opset.domain for opset in graph.opset_import)
    assert [output.name for output in graph.graph.output] == ["probabilities"]


@pytest.mark.parametrize("size", BATCHES)
def test_a_row_gets_the_same_bits_in_any_batch(bundle_path: Path, columns: Columns, size: int) -> None:
    opened = Bundle.open(bundle_path)
    whole = opened.predict(columns).output
    for at in (0, 7, len(whole) - size):
        part = {name: values[at : at + size] for name, values in columns.items()}
        assert bundles.same_bits(opened.predict(part).output, whole[at : at + size])


def test_a_linear_model_needs_two_rows_to_be_steady_and_gets_them(
    table: pl.DataFrame, columns: Columns, contract: Contract, params: Params, tmp_path: Path
) -> None:
    linear = params.model_copy(update={"train": params.train.model_copy(update={"estimator": "logistic_regression"})})
    opened = Bundle.open(make_bundle(tmp_path / "bundle", table, contract, linear))
    assert opened.manifest.min_batch in (1, 2)
    whole = opened.predict(columns).output
    alone = [
        opened.predict({name: values[at : at + 1] for name, values in columns.items()}).output for at in range(200)
    ]
    assert bundles.same_bits(np.concatenate(alone), whole[:200])


def test_a_graph_whose_bits_depend_on_the_batch_is_refused(bundle_path: Path, columns: Columns) -> None:
    class Unsteady(Bundle):
        def run(self, inputs: Inputs) -> np.ndarray:
            found = super().run(inputs)
            return found + np.float32(len(found))

    with pytest.raises(IntegrityError, match="answers differently for one row and for many"):
        package.find_min_batch(Unsteady.open(bundle_path), columns)


def test_a_bundle_says_what_it_was_made_from_and_no_more(bundle_path: Path, contract: Contract, params: Params) -> None:
    manifest = bundle.verify(bundle_path)
    assert manifest.contract_sha256 == contract.fingerprint()
    assert manifest.params_sha256 == params.training_fingerprint()
    assert set(manifest.libraries) == set(package.LIBRARIES)
    assert set(manifest.rows) == {"train", "validation", "test"}
    text = (bundle_path / bundle.MANIFEST).read_text()
    assert str(project.ROOT) not in text
    assert not re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d", text), "a time of making would differ between equal bundles"


def test_a_bundle_that_cannot_be_finished_leaves_the_former_one(
    bundle_path: Path, table: pl.DataFrame, contract: Contract, params: Params, tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "former").touch()
    evaluation: dict[str, Any] = {"threshold": 0.5, "half_width": None, "metrics": {}, "slices": []}
    reports = {
        "split": {},
        "trained": {"estimator": "x", "prior": [0.5, 0.5], "comparison": None},
        "evaluation": evaluation,
    }
    unfitted = FittedModel(Pipeline([("none", "passthrough")]))
    with pytest.raises(AttributeError):
        package.pack(path, project.ROOT / "contract.yaml", unfitted, {"test": table}, params, reports)
    assert [found.name for found in tmp_path.iterdir()] == ["bundle"]
    assert (path / "former").exists()


def test_the_parity_of_a_foreign_model_shows(
    bundle_path: Path, table: pl.DataFrame, contract: Contract, params: Params
) -> None:
    other = train.train(table.head(300), contract, params).model
    assert package.measure_parity(Bundle.open(bundle_path), other, table) > 0.05


def test_forest_is_never_more_than_certain(tmp_path: Path, params: Params) -> None:
    """Twenty shares of a twentieth, added in float32, are more than one."""
    contract = contract_of("binary", {"name": "x", "type": "float"})
    x = np.linspace(-1, 1, 600)[np.random.default_rng(0).permutation(600)]
    table = pl.DataFrame({"x": x, "target": [contract.classes[int(value > 0)] for value in x]})
    forest = params.train.random_forest.model_copy(update={"n_estimators": 20, "min_samples_leaf": 1})
    chosen = params.train.model_copy(
        update={"estimator": "random_forest", "random_forest": forest, "calibration": "none"}
    )
    by_hash = params.split.model_copy(update={"by": "hash", "validation_days": None, "test_days": None})
    whole = params.evaluate.model_copy(update={"slices": ()})
    opened = Bundle.open(
        make_bundle(
            tmp_path / "bundle",
            table,
            contract,
            params.model_copy(update={"train": chosen, "split": by_hash, "evaluate": whole}),
        )
    )
    raw = opened._session.run(None, {"num": x[:, None].astype(np.float32)})[0]
    assert raw.max() > 1, "without which this test shows nothing"
    assert opened.predict({"x": x}).output.max() == 1
