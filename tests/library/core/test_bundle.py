"""A bundle predicts each row as scikit-learn does; a modified bundle is rejected."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_ml.core import bundle, features
from flywheel_ml.core.bundle import CARD, CONTRACT, HASHED, LINEAGE, MANIFEST, MODEL, PROFILE, Bundle, verify
from flywheel_ml.core.contract import Columns, Contract, columns_from_rows
from flywheel_ml.core.features import Featurizer
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.data.split import split
from flywheel_ml.model.evaluation import evaluate
from flywheel_ml.model.packaging import package
from flywheel_ml.model.pipelines import estimators
from flywheel_ml.model.pipelines.fitted import FittedModel
from flywheel_ml.model.training import train
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.testing.rows import json_rows
from flywheel_ml.utils import files
from flywheel_ml.utils.errors import ConfigError, IntegrityError, ProjectError
from library.helpers.bundles import same_bits
from library.helpers.rows import find_column

ESTIMATORS: tuple[str, ...] = ("hist_gradient_boosting", "logistic_regression")


class Trained(NamedTuple):
    """A bundle and the scikit-learn pipeline that it was made of."""

    bundle: Bundle
    pipeline: Any


@pytest.fixture(scope="module", params=ESTIMATORS)
def trained(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    table: pl.DataFrame,
    contract: Contract,
    params: Params,
) -> Trained:
    chosen = params.model_copy(update={"train": params.train.model_copy(update={"estimator": request.param})})
    path = make_bundle(tmp_path_factory.mktemp(request.param) / "bundle", table, contract, chosen)
    parts = split(table, contract, params.split, None)
    return Trained(Bundle.open(path), train.train(parts["train"], contract, chosen, parts["validation"]).model)


def take(columns: Columns, rows: Any) -> dict[str, np.ndarray]:
    return {name: values[rows] for name, values in columns.items()}


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 2999), min_size=1, max_size=90))
def test_prediction_does_not_depend_on_other_rows(trained: Trained, columns: Columns, rows: list[int]) -> None:
    whole = trained.bundle.predict(columns)
    some = trained.bundle.predict(take(columns, rows))
    assert same_bits(some.output, whole.output[rows])
    assert some.values.tolist() == whole.values[rows].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 255, 256, 257, 1000])
def test_batches_of_every_size_give_the_bits_of_the_whole(trained: Trained, columns: Columns, size: int) -> None:
    whole = trained.bundle.predict(columns).output
    for first in range(0, 3000 - size, max(size, 300)):
        part = trained.bundle.predict(take(columns, slice(first, first + size))).output
        assert same_bits(part, whole[first : first + size])


def test_bundle_matches_scikit_learn_on_missing_and_unknown(
    trained: Trained, table: pl.DataFrame, contract: Contract
) -> None:
    rng = np.random.default_rng(1)
    rows = json_rows(table.head(600), contract)
    for row in rows:
        for column in contract.inputs:
            if rng.random() < 0.2:
                if column.type == "string":
                    row[column.name] = (None, "never seen", "", "ä€😀")[rng.integers(0, 4)]
                elif column.is_numeric:
                    row[column.name] = (None, float("nan"), float("inf"), -1e39)[rng.integers(0, 4)]
    columns = columns_from_rows(contract.inputs, rows)
    expected = evaluate.predict(trained.pipeline, columns, contract)
    np.testing.assert_allclose(trained.bundle.run(trained.bundle.encode(columns)), expected, rtol=0, atol=1e-5)


def test_row_without_values_is_predicted_as_by_scikit_learn(trained: Trained, contract: Contract) -> None:
    columns = columns_from_rows(contract.inputs, [{}])
    expected = evaluate.predict(trained.pipeline, columns, contract)
    np.testing.assert_allclose(trained.bundle.run(trained.bundle.encode(columns)), expected, rtol=0, atol=1e-5)


def test_whole_table_is_predicted_as_by_scikit_learn(
    trained: Trained, columns: Columns, contract: Contract, params: Params
) -> None:
    answers = trained.bundle.run(trained.bundle.encode(columns))
    gap = np.abs(answers - evaluate.predict(trained.pipeline, columns, contract)).max()
    assert gap <= params.gates.parity_tolerance
    assert trained.bundle.manifest.parity <= params.gates.parity_tolerance


def test_nan_null_and_a_number_too_large_are_one_and_the_same(
    trained: Trained, columns: Columns, contract: Contract
) -> None:
    numbers = [column.name for column in contract.inputs if column.is_numeric]
    answers = []
    for value in (float("nan"), float("inf"), float("-inf"), 1e39):
        some = {**take(columns, slice(0, 20)), **{name: np.full(20, value) for name in numbers}}
        answers.append(trained.bundle.predict(some).output)
    assert all(same_bits(answer, answers[0]) for answer in answers)


def test_class_follows_the_threshold(trained: Trained, columns: Columns) -> None:
    answers = trained.bundle.predict(columns)
    assert answers.output.shape == (3000, 2)
    np.testing.assert_allclose(answers.output.sum(axis=1), 1, atol=1e-6)
    assert (answers.values == (answers.scores >= trained.bundle.manifest.threshold)).all()
    assert answers.values.dtype == bool
    assert set(answers.values.tolist()) == {True, False}


def test_no_rows_give_no_predictions(trained: Trained, contract: Contract) -> None:
    answers = trained.bundle.predict(columns_from_rows(contract.inputs, []))
    assert (answers.values.shape, answers.output.shape) == ((0,), (0, 2))


def test_estimator_that_differs_on_single_rows_gets_two(trained: Trained, columns: Columns) -> None:
    opened = Bundle.open(trained.bundle.path)
    opened.manifest = opened.manifest.model_copy(update={"min_batch": 1})
    whole = opened.predict(columns).output
    alone = [same_bits(opened.predict(take(columns, [at])).output, whole[[at]]) for at in range(200)]
    assert all(alone) == (trained.bundle.manifest.min_batch == 1)


# Attacks.


def facts(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    return {key: value for key, value in content.items() if key != "files"}


def test_an_untouched_copy_opens_wherever_it_lies(bundle_copy: Path, columns: Columns, bundle_path: Path) -> None:
    digest = files.sha256_file(bundle_copy / MANIFEST)
    opened = Bundle.open(bundle_copy, digest)
    assert opened.digest == digest
    assert opened.profile.columns
    assert same_bits(opened.predict(columns).output, Bundle.open(bundle_path).predict(columns).output)


@pytest.mark.parametrize("name", HASHED)
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_changed_byte_in_any_file_is_found_by_name(bundle_copy: Path, name: str, place: float) -> None:
    content = bytearray((bundle_copy / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (bundle_copy / name).write_bytes(content)
    for look in (verify, Bundle.open):
        with pytest.raises(IntegrityError, match=rf"{name} was changed after its manifest was written"):
            look(bundle_copy)


def test_changed_manifest_is_detected_by_its_digest(bundle_copy: Path) -> None:
    digest = files.sha256_file(bundle_copy / MANIFEST)
    whole = (bundle_copy / MANIFEST).read_bytes()
    for at in range(0, len(whole), 97):
        content = bytearray(whole)
        content[at] ^= 1
        (bundle_copy / MANIFEST).write_bytes(content)
        with pytest.raises(IntegrityError, match=r"manifest.json was changed after it was registered"):
            Bundle.open(bundle_copy, digest)


def test_unreadable_manifest_is_rejected_without_a_digest(bundle_copy: Path) -> None:
    for content in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"format": 1}', b'{"format": "1"}'):
        (bundle_copy / MANIFEST).write_bytes(content)
        with pytest.raises(IntegrityError, match=r"manifest.json"):
            Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", [*HASHED, MANIFEST])
def test_a_missing_file_is_named(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).unlink()
    with pytest.raises(IntegrityError, match=rf"{name} is missing"):
        Bundle.open(bundle_copy)


def test_a_folder_that_is_not_there_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"manifest.json is missing"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_model_is_rejected_despite_a_valid_hash(bundle_copy: Path, kept: float) -> None:
    content = (bundle_copy / MODEL).read_bytes()
    (bundle_copy / MODEL).write_bytes(content[: int(kept if kept >= 1 else kept * len(content))])
    bundle.write_manifest(bundle_copy, facts(bundle_copy))
    with pytest.raises(IntegrityError, match=r"model.onnx") as caught:
        Bundle.open(bundle_copy)
    assert "\n" not in str(caught.value)


def test_model_with_other_inputs_is_rejected(
    bundle_copy: Path, contract: Contract, table: pl.DataFrame, params: Params
) -> None:
    kept = tuple(column for column in contract.columns if column.name != contract.inputs[-1].name)
    featurizer = Featurizer(contract.model_copy(update={"columns": kept}))
    frame = estimators.to_frame(featurizer.encode(tables.to_columns(table.head(500), contract.inputs)))
    labels = table.head(500)[contract.target.name].to_numpy()
    linear = estimators.build("logistic_regression", "binary", params.train, featurizer, 0)
    other = FittedModel(estimators.fit(linear, frame, labels))
    (bundle_copy / MODEL).write_bytes(package.to_onnx(other, featurizer))
    bundle.write_manifest(bundle_copy, facts(bundle_copy))
    with pytest.raises(IntegrityError, match=r"model.onnx takes other inputs than its manifest.json lists"):
        Bundle.open(bundle_copy)


def rename(path: Path, column: str) -> None:
    """Give a column of a contract another name."""
    content = yaml.safe_load(path.read_text())
    (found,) = (entry for entry in content["columns"] if entry["name"] == column)
    found["name"] = "something_else"
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def test_foreign_contract_with_valid_hash_is_rejected(bundle_copy: Path, contract: Contract) -> None:
    path = bundle_copy / CONTRACT
    rename(path, contract.inputs[-1].name)
    bundle.write_manifest(bundle_copy, facts(bundle_copy))
    with pytest.raises(IntegrityError, match=r"contract.yaml is not the contract that the model was trained with"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("which", ["inputs", "target"])
def test_foreign_contract_with_all_hashes_valid_is_rejected(bundle_copy: Path, contract: Contract, which: str) -> None:
    path = bundle_copy / CONTRACT
    rename(path, contract.inputs[-1].name if which == "inputs" else contract.target.name)
    bundle.write_manifest(bundle_copy, {**facts(bundle_copy), "contract_sha256": Contract.load(path).fingerprint()})
    with pytest.raises(IntegrityError, match=r"contract.yaml gives another target or other model inputs"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("change", ["dropped", "added"])
def test_a_manifest_that_vouches_for_other_files_is_rejected(bundle_copy: Path, change: str) -> None:
    content = json.loads((bundle_copy / MANIFEST).read_text())
    if change == "dropped":
        del content["files"][MODEL]
    else:
        content["files"]["../../outside"] = "0" * 64
    (bundle_copy / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(
        IntegrityError, match=r"lists other files than model.onnx, contract.yaml, profile.json, card.md"
    ):
        Bundle.open(bundle_copy)


def test_a_manifest_of_a_newer_format_says_what_to_do(bundle_copy: Path) -> None:
    content = json.loads((bundle_copy / MANIFEST).read_text())
    (bundle_copy / MANIFEST).write_text(json.dumps({**content, "format": 3, "something": "new"}))
    with pytest.raises(ConfigError, match=r"has format 3, this package reads up to 2; update the package"):
        Bundle.open(bundle_copy)


def test_an_unknown_key_in_a_manifest_is_rejected(bundle_copy: Path) -> None:
    content = json.loads((bundle_copy / MANIFEST).read_text())
    (bundle_copy / MANIFEST).write_text(json.dumps({**content, "treshold": 0.1}))
    with pytest.raises(IntegrityError, match=r"unknown key 'treshold'; did you mean 'threshold'"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", [LINEAGE, "notes.txt", ".hidden", "model.onnx.bak"])
def test_extra_file_in_a_bundle_is_ignored(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).write_text("anything")
    Bundle.open(bundle_copy, files.sha256_file(bundle_copy / MANIFEST))


def doubled(x: np.ndarray) -> np.ndarray:
    return 2 * x


def tripled(x: np.ndarray) -> np.ndarray:
    return 3 * x


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ((doubled,), "was trained with another definition of 'doubled'; restore it in features.py and give the new"),
        ((), "needs the feature 'doubled', which features.py no longer has; restore it"),
    ],
)
def test_changed_or_removed_feature_is_rejected_by_name(
    bundle_copy: Path, known: tuple[Callable[..., Any], ...], message: str
) -> None:
    bundle.write_manifest(bundle_copy, {**facts(bundle_copy), "derived": {"doubled": "0" * 64}})
    with pytest.raises(ConfigError, match=message):
        Bundle.open(bundle_copy, features=known)


def test_a_new_derived_feature_does_not_disturb_an_old_bundle(bundle_copy: Path, columns: Columns) -> None:
    before = Bundle.open(bundle_copy).predict(columns).output
    assert same_bits(Bundle.open(bundle_copy, features=(doubled,)).predict(columns).output, before)


def test_every_rejection_is_one_line_that_says_which_bundle(bundle_copy: Path) -> None:
    (bundle_copy / PROFILE).write_text("{}")
    with pytest.raises(ProjectError) as caught:
        Bundle.open(bundle_copy)
    assert str(bundle_copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_derived_features_keep_their_training_order(
    tmp_path: Path, table: pl.DataFrame, contract: Contract, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON sorts their names; the model's inputs do not."""
    column = find_column(contract, lambda column: column.type == "float", "float column").name
    one_input = inspect.Signature(
        [inspect.Parameter(features.to_parameter_name(column), inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    )
    for function in (tripled, doubled):
        monkeypatch.setattr(function, "__signature__", one_input, raising=False)
    backwards = (tripled, doubled)
    path = make_bundle(tmp_path / "bundle", table, contract, params, backwards)
    opened = Bundle.open(path, features=backwards)
    assert opened.manifest.numeric[-2:] == ("tripled", "doubled")


def test_equal_bundles_are_equal_bytes(
    bundle_path: Path, tmp_path: Path, table: pl.DataFrame, contract: Contract, params: Params
) -> None:
    again = make_bundle(tmp_path / "again", table, contract, params)
    for name in (*HASHED, MANIFEST):
        assert (again / name).read_bytes() == (bundle_path / name).read_bytes(), name
    assert CARD in HASHED


def test_rows_from_json_and_from_a_table_get_the_same_bits(
    trained: Trained, table: pl.DataFrame, contract: Contract
) -> None:
    from_json = columns_from_rows(contract.inputs, json.loads(json.dumps(json_rows(table, contract))))
    from_table = tables.to_columns(table, contract.inputs)
    assert same_bits(trained.bundle.predict(from_json).output, trained.bundle.predict(from_table).output)
