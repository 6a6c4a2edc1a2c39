"""What is learnt from texts: means without leaks, words that convert bit by bit, and only where they help."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flywheel_ml.core.bundle import Bundle
from flywheel_ml.core.contract import Contract, Task, columns_from_rows
from flywheel_ml.core.features import Featurizer, to_parameter_name
from flywheel_ml.core.params import Params
from flywheel_ml.data import tables
from flywheel_ml.data.split import split
from flywheel_ml.model.packaging import package
from flywheel_ml.model.pipelines import estimators, free_text, preprocessing
from flywheel_ml.model.pipelines.preprocessing import CrossFittedTargetEncoder, TopTermsTfidf
from flywheel_ml.model.training import train
from flywheel_ml.testing.bundles import make_bundle
from flywheel_ml.utils import config_model

TARGETS: dict[Task, dict[str, Any]] = {
    "binary": {"type": "boolean"},
    "multiclass": {"type": "string", "categories": ["a", "b", "c"]},
    "regression": {"type": "float"},
}
NASTY = [
    "", " ", "\n\n", "...!?", "#", "# #", "ÄRGER über Straße", "İstanbul ǅ ﬁ", "日本語 テキスト", "a\x00b", "e\u0301 é",
    "good\tbad\r\ngood", "12 3.5 1e9", "x" * 5000, "good " * 5000, "🙂 good 🙂", "\ud800 bad", "__missing__",
    "[.*+?](", None,
]  # fmt: skip
WORDS = np.array(["good", "bad", "slow", "fast", "the", "a"], dtype=object)


def make(task: Task, rows: int = 600) -> tuple[Contract, pl.DataFrame]:
    """A number, a text of words that tell the target, a shop of many, and the target."""
    rng = np.random.default_rng(3)
    contract = config_model.parse(
        {
            "name": "reviews",
            "columns": [
                {"name": "size", "type": "float"},
                {"name": "note", "type": "string", "nullable": True, "free_text": True},
                {"name": "shop", "type": "string", "nullable": True},
                {"name": "y", "role": "target", **TARGETS[task]},
            ],
        },
        Contract,
        "contract.yaml",
    )
    said = rng.integers(0, len(WORDS), (rows, 6))
    notes: list[str | None] = [" ".join(words) for words in WORDS[said]]
    # But for one text of a single word 200 times, which no line fits.
    usual = [text and text.replace("\ud800", "") for text in NASTY if text is None or len(text) < 20_000]
    notes[: len(usual)] = usual
    signal = (said == 0).sum(axis=1) - (said == 1).sum(axis=1)
    target: Any = {"binary": signal > 0, "multiclass": None, "regression": signal + 0.1 * rng.normal(size=rows)}[task]
    if task == "multiclass":
        target = [("a", "b", "c")[np.sign(at) + 1] for at in signal.tolist()]
    shops = [f"shop {at}" for at in rng.integers(0, 200, rows)]
    return contract, pl.DataFrame({"size": rng.normal(size=rows), "note": notes, "shop": shops, "y": target})


def own(params: Params) -> Params:
    return params.model_copy(
        update={
            "split": config_model.parse({"by": "hash"}, type(params.split), "split"),
            "evaluate": params.evaluate.model_copy(update={"slices": ()}),
        }
    )


@pytest.fixture(params=list(TARGETS))
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> tuple[Bundle, pl.DataFrame]:
    """A bundle of each task."""
    contract, table = make(request.param)
    return Bundle.open(make_bundle(tmp_path / "bundle", table, contract, own(params))), table


def test_any_text_is_scored_alike_alone_in_batch_and_in_sklearn(
    opened: tuple[Bundle, pl.DataFrame],
) -> None:
    bundle, _ = opened
    assert bundle.manifest.parity < 1e-6
    rows = [{"size": 0.5, "note": text, "shop": shop} for text in NASTY for shop in ("shop 1", "new", None)]
    together = bundle.predict(columns_from_rows(bundle.contract.inputs, rows)).output
    for at, row in enumerate(rows):
        alone = bundle.predict(columns_from_rows(bundle.contract.inputs, [row])).output
        assert alone.tobytes() == together[at : at + 1].tobytes(), row
    assert np.std(together[:, -1]) > 0
    assert bundle.profile.columns["note"].kind == "numeric"
    assert len(bundle.profile.text()) < 50_000


def test_text_decision_samples_rows_but_training_uses_all(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    contract, table = make("binary")
    chosen = own(params)
    parts = split(table, contract, chosen.split, None)
    of_all = train.train(parts["train"], contract, chosen, parts["validation"])
    monkeypatch.setattr(free_text, "MAX_ROWS", 100)
    of_some = train.train(parts["train"], contract, chosen, parts["validation"])
    assert of_all.text is not None
    assert of_some.text is not None
    assert (of_some.text.kept, of_some.text.with_text) != (of_all.text.kept, of_all.text.with_text)
    assert of_some.text.kept
    featurizer = Featurizer(contract)
    assert package.to_onnx(of_some.model, featurizer) == package.to_onnx(of_all.model, featurizer)


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("estimator", ["hist_gradient_boosting", "linear"])
def test_words_are_used_only_if_they_help(
    task: Task, estimator: str, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract, table = make(task)
    linear = "ridge" if task == "regression" else "logistic_regression"
    chosen = own(params)
    if estimator == "linear":
        chosen = chosen.model_copy(update={"train": chosen.train.model_copy(update={"estimator": linear})})
    shuffled = table.with_columns(table["note"].shuffle(seed=1))
    for rows, kept in ((table, True), (shuffled, False)):
        parts = split(rows, contract, chosen.split, None)
        fitted = train.train(parts["train"], contract, chosen, parts["validation"])
        assert fitted.text is not None
        assert fitted.text.kept is kept, fitted.text
        for pipeline in (fitted.model, fitted.baseline):
            assert any(name.startswith("words") for name, *_ in pipeline[0].transformers_) is kept
    featurizer = Featurizer(contract)
    assert package.to_onnx(fitted.model, featurizer) == package.to_onnx(fitted.model, featurizer)


def test_words_in_all_rows_are_fitted_in_threads_without_warning(params: Params) -> None:
    columns = [{"name": f"note {at}", "type": "string", "free_text": True} for at in range(6)]
    target = {"name": "y", "role": "target", "type": "boolean"}
    contract = config_model.parse({"name": "notes", "columns": [*columns, target]}, Contract, "contract.yaml")
    featurizer, labels = Featurizer(contract, ()), np.arange(60) % 2
    frame = pl.DataFrame({f"c{at}": [f"same number{row % 7}" for row in range(60)] for at in range(6)})
    for _ in range(5):
        pipeline = estimators.build("logistic_regression", "binary", params.train, featurizer, 0)
        assert estimators.fit(pipeline, frame, labels).predict(frame).shape == (60,)


def test_what_is_kept_of_words_is_the_same_in_every_process() -> None:
    learnt = TopTermsTfidf().fit(["good", "bad", "good bad"], [1, 0, 1])
    learnt.transform(["good"])
    imports = f"import pickle, sys; from {TopTermsTfidf.__module__} import TopTermsTfidf"
    code = f"{imports}; words = TopTermsTfidf().fit(['good', 'bad', 'good bad'], [1, 0, 1])"
    told = f"{code}; words.transform(['good']); sys.stdout.buffer.write(pickle.dumps(words))"
    elsewhere = subprocess.run([sys.executable, "-c", told], capture_output=True, check=True).stdout
    assert elsewhere == pickle.dumps(learnt)


def test_no_row_s_own_target_reaches_its_mean() -> None:
    shops = np.array([[f"shop {at // 2}"] for at in range(400)], dtype=object)
    target = np.random.default_rng(0).integers(0, 2, 400)
    encoder = CrossFittedTargetEncoder(target_type="binary", cv=5)
    learnt = encoder.fit_transform(shops, target)[:, 0]
    # With its own target in it, a mean of two rows would follow it closely.
    assert np.corrcoef(encoder.transform(shops)[:, 0], target)[0, 1] > 0.5
    assert abs(np.corrcoef(learnt, target)[0, 1]) < 0.3


def test_new_feature_reaches_training_scoring_and_drift_profile(
    tmp_path: Path, table: pl.DataFrame, contract: Contract, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = next((column for column in contract.inputs if column.type == "float"), None)
    if number is None:
        pytest.skip("the contract has no float")
    space: dict[str, Any] = {"np": np}
    source = f"def twice({to_parameter_name(number.name)}):\n    return 2 * {to_parameter_name(number.name)}\n"
    (tmp_path / "own.py").write_text(source)
    exec(compile(source, str(tmp_path / "own.py"), "exec"), space)
    functions = (space["twice"],)
    path = make_bundle(tmp_path / "bundle", table, contract, params, functions)
    bundle = Bundle.open(path, features=functions)
    assert bundle.manifest.numeric[-1] == "twice"
    assert bundle.profile.columns["twice"].edges
    some = {name: values[:40] for name, values in tables.to_columns(table, contract.inputs).items()}
    many = bundle.encode(some).num[:, -1]
    one = bundle.encode({name: values[:1] for name, values in some.items()}).num[0, -1]
    assert np.array_equal(many, np.float32(2 * some[number.name]), equal_nan=True)
    assert np.array_equal(one, many[0], equal_nan=True)
    assert np.array_equal(bundle.drift_features(some)["twice"].astype(np.float32), many, equal_nan=True)


def test_table_of_texts_only_always_keeps_its_words(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract, table = make("binary")
    columns = tuple(column for column in contract.columns if column.name in ("note", contract.target.name))
    contract = contract.model_copy(update={"columns": columns})
    table = table.select(column.name for column in columns).with_columns(table["note"].shuffle(seed=1))
    parts = split(table, contract, own(params).split, None)
    fitted = train.train(parts["train"], contract, own(params), parts["validation"])
    assert fitted.text is None
    assert fitted.model.predict_proba is not None


def test_linear_splines_bend_at_quantiles_and_mark_gaps() -> None:
    values = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, np.nan], [3.0, 5.0], [4.0, 5.0]])
    fitted = preprocessing.LinearSplines(n_knots=1).fit(values)
    assert fitted.transform(values).tolist() == [
        [0.0, 5.0, 0.0, 0.0],
        [1.0, 5.0, 0.0, 0.0],
        [2.0, 5.0, 0.0, 1.0],
        [3.0, 5.0, 1.0, 0.0],
        [4.0, 5.0, 2.0, 0.0],
    ], "values with gaps filled, max(0, first - 2), gaps of the second; a constant column does not bend"
