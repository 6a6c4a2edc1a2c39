"""Stage 6: packages the model as a bundle: reproducible ONNX, compared with scikit-learn on every test row."""

import copy
import math
import shutil
import warnings
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from flywheel_ml.core import bundle, paths, profile
from flywheel_ml.core.contract import Columns, Contract
from flywheel_ml.core.features import Feature, Featurizer
from flywheel_ml.core.params import Params
from flywheel_ml.core.project import Project
from flywheel_ml.data import tables
from flywheel_ml.model.evaluation.evaluate import load_pipeline, predict
from flywheel_ml.model.packaging import card
from flywheel_ml.model.pipelines import categories, networks, preprocessing
from flywheel_ml.model.pipelines.fitted import FittedModel
from flywheel_ml.model.training.train import read_split
from flywheel_ml.utils.errors import IntegrityError
from flywheel_ml.utils.files import canonical_json, read_json, replacing, replacing_folder

BACKGROUND_CANDIDATES = 5000
"""Number of training rows from which the background rows are chosen."""
LIBRARIES = ("numpy", "onnxruntime", "polars", "scikit-learn", "skl2onnx")


def to_onnx(model: FittedModel, featurizer: Featurizer) -> bytes:
    """Convert the fitted pipeline to ONNX; equal pipelines give equal bytes.

    The inputs are `num` and `cat`; the output is uncalibrated float32 probabilities, or float64 values.
    """
    from skl2onnx import to_onnx as convert
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    kinds = {"num": (FloatTensorType, featurizer.numeric), "cat": (StringTensorType, featurizer.categorical)}
    inputs = [(name, kind([None, len(names)])) for name, (kind, names) in kinds.items() if names]
    pipeline, center = _to_single_precision(model.pipeline), model.center
    blocks = categories.rewrite_as_equalities(pipeline[-1])
    preprocessing.register_converters()
    with warnings.catch_warnings():
        # skl2onnx writes booleans where protobuf wants integers; pyproject.toml caps protobuf below where that fails.
        warnings.filterwarnings("ignore", "Field onnx.AttributeProto.ints", DeprecationWarning)
        graph = convert(
            pipeline,
            initial_types=inputs,
            options={id(pipeline[-1]): {"zipmap": False}} if hasattr(pipeline[-1], "classes_") else None,
            target_opset={"": 18, "ai.onnx.ml": 3},
        )
    if blocks:
        categories.attach_blocks(graph, blocks)
    for output in [output for output in graph.graph.output if output.name not in ("probabilities", "variable")]:
        graph.graph.output.remove(output)
    _keep_small_probabilities(graph.graph)
    if not hasattr(pipeline, "predict_proba"):
        _add_center(graph.graph, center)
    # skl2onnx draws the graph's name and orders the opsets by hash seed.
    graph.graph.name = "model"
    opsets = sorted((opset.domain, opset.version) for opset in graph.opset_import)
    del graph.opset_import[:]
    for domain, number in opsets:
        graph.opset_import.add(domain=domain, version=number)
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def _keep_small_probabilities(graph: Any) -> None:
    """Make a binary network return the softmax of [0, log odds], as `networks.Classifier` does.

    ONNX Runtime's Sigmoid is exact to 1e-7, too coarse for a probability of 1e-6 that a calibrator enlarges.
    """
    from onnx import helper

    made_by = {node.output[0]: node for node in graph.node}
    if "negative_class_proba" not in made_by:
        return
    subtracted, joined = made_by["negative_class_proba"], made_by["probabilities"]
    squashed = made_by[subtracted.input[1]]
    (odds,) = squashed.input
    at = list(graph.node).index(joined)
    graph.node.insert(at, helper.make_node("Sub", [odds, odds], ["no_odds"]))
    graph.node.insert(at + 1, helper.make_node("Concat", ["no_odds", odds], ["log_odds"], axis=1))
    graph.node.insert(at + 2, helper.make_node("Softmax", ["log_odds"], ["probabilities"], axis=1))
    for node in (squashed, subtracted, joined):
        graph.node.remove(node)


def _add_center(graph: Any, center: float) -> None:
    """Make the graph return its value + `center` in float64, which resolves more values than float32."""
    from onnx import TensorProto, helper, numpy_helper

    (output,) = graph.output
    graph.initializer.append(numpy_helper.from_array(np.array([center], dtype=np.float64), "center"))
    graph.node.append(helper.make_node("Cast", [output.name], ["distance"], to=TensorProto.DOUBLE))
    graph.node.append(helper.make_node("Add", ["distance", "center"], ["value"]))
    graph.output.remove(output)
    graph.output.append(helper.make_tensor_value_info("value", TensorProto.DOUBLE, [None, 1]))


def _to_single_precision(pipeline: Any) -> Any:
    """Copy the pipeline so that predictions for float32 inputs stay equal when tree thresholds become float32.

    Rounded up, a threshold between two neighbouring float32 numbers would send the upper one down the other branch.
    """
    copied = copy.deepcopy(pipeline)
    networks.restore_sklearn_class(copied[-1])
    for trees in getattr(copied[-1], "_predictors", []):
        for tree in trees:
            exact = tree.nodes["num_threshold"]
            single = exact.astype(np.float32)
            above = single > exact
            single[above] = np.nextafter(single[above], np.float32(-np.inf))
            tree.nodes["num_threshold"] = single
    return copied


def find_min_batch(opened: bundle.Bundle, columns: Columns) -> int:
    """Find the smallest batch whose rows get the same bits as in one large batch.

    It is 1 for trees, and 2 where a matrix product takes another path for a single row.

    Raises:
        IntegrityError: no such batch was found, so the API and batch scoring would disagree.
    """
    whole = opened.run(opened.encode(columns))
    n_rows = len(whole)
    for smallest in (1, 2):
        opened.manifest = opened.manifest.model_copy(update={"min_batch": smallest})
        if all(
            np.array_equal(opened.run(opened.encode(_slice_rows(columns, at, size))), whole[at : at + size])
            for size in (1, 2, 3, 7, 64, 1000)
            for at in range(0, max(1, n_rows - size), max(1, n_rows // 50))
        ):
            return smallest
    raise IntegrityError(
        "the bundle answers differently for one row and for many: a function in features.py, or the estimator in "
        "params.yaml, uses other rows of the batch; change it so that each row is predicted on its own"
    )


def measure_parity(opened: bundle.Bundle, pipeline: Any, rows: pl.DataFrame) -> float:
    """Measure the largest difference between the bundle and scikit-learn on n_rows.

    In probability for classes; for regression in standard deviations of the true values.
    """
    contract = opened.contract
    columns = tables.to_columns(rows, contract.inputs)
    apart = np.abs(opened.run(opened.encode(columns)) - predict(pipeline, columns, contract, opened.features)).max()
    scale = 1.0 if contract.classes else float(tables.encode_target(rows, contract).std()) or 1.0
    return float(apart / scale)


def choose_background(opened: bundle.Bundle, rows: pl.DataFrame, count: int, seed: int) -> list[dict[str, Any]]:
    """Choose `count` of n_rows as background for explanations, with input columns only.

    Candidates are drawn at random, sorted by prediction and divided into equal parts. Each part contributes the row
    whose prediction is closest to the mean of the part, so the few rows have nearly the mean score of all rows. Their
    order is random.
    """
    inputs, rng = opened.contract.inputs, np.random.default_rng(seed)
    candidates = rows[rng.choice(rows.height, min(BACKGROUND_CANDIDATES, rows.height), replace=False).tolist()]
    answers = opened.run(opened.encode(tables.to_columns(candidates, inputs))).astype(np.float64)
    order = np.lexsort((answers.max(axis=1), answers.argmax(axis=1)))
    parts = np.array_split(order, min(count, len(order))) if count else []
    nearest = [part[((answers[part] - answers[part].mean(axis=0)) ** 2).sum(axis=1).argmin()] for part in parts]
    chosen = rng.permutation(np.array(nearest, dtype=np.intp)).tolist()
    chosen_rows = candidates[chosen].select(column.name for column in inputs)
    return [{name: _to_json_value(value) for name, value in row.items()} for row in chosen_rows.to_dicts()]


def _to_json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(project: Project) -> None:
    """Convert, compare, profile and describe the model, and write the bundle."""
    params = project.load_params()
    split, trained = read_json(paths.REPORTS / "split.json"), read_json(paths.REPORTS / "train.json")
    evaluation = read_json(paths.REPORTS / "evaluation.json")
    pack(
        paths.BUNDLE,
        paths.CONTRACT,
        load_pipeline(paths.MODEL, trained["sha256"]),
        {name: read_split(name, split) for name in ("train", "test")},
        params,
        {"split": split, "trained": trained, "evaluation": evaluation},
        project.features,
        project.folder / "cards",
        paths.PROFILE_BINS,
    )


def pack(
    path: Path,
    contract_path: Path,
    pipeline: FittedModel,
    parts: dict[str, pl.DataFrame],
    params: Params,
    reports: dict[str, Any],
    features: Sequence[Feature] = (),
    cards: Path | None = None,
    bins_path: Path | None = None,
) -> bundle.Manifest:
    """Write the bundle of a fitted pipeline to `path`, atomically.

    Args:
        parts: `train`, the rows it was fitted on, and `test`, the rows for comparison and profile.
        reports: the reports of the stages, as `split`, `trained` and `evaluation`.
        features: the project's own.
        cards: folder of the project's card templates.
        bins_path: file with the bins of the profile; earlier ones are kept while they suit, and written back.
    """
    contract = Contract.load(contract_path)
    previous = profile.Bins.load(bins_path) if bins_path is not None and bins_path.is_file() else None
    featurizer = Featurizer(contract, features)
    test = tables.to_columns(parts["test"], contract.inputs)
    facts: dict[str, Any] = {
        "name": contract.name,
        "task": contract.task,
        "target": contract.target.name,
        "classes": list(contract.classes),
        "threshold": reports["evaluation"]["threshold"],
        "half_width": reports["evaluation"]["half_width"],
        "calibration": pipeline.calibration.model_dump(mode="json"),
        "comparison": reports["trained"]["comparison"],
        "estimator": reports["trained"]["estimator"],
        "tuned": reports["trained"].get("tuned"),
        "numeric": featurizer.numeric,
        "categorical": [column.name for column in featurizer.categorical],
        "derived": featurizer.definitions,
        "min_batch": 1,
        "prior": reports["trained"]["prior"],
        "rows": {name: part["rows"] for name, part in reports["split"].items()},
        "metrics": reports["evaluation"]["metrics"],
        "slices": reports["evaluation"]["slices"],
        "parity": 0.0,
        "data": {name: part["sha256"] for name, part in reports["split"].items()},
        "params_sha256": params.training_fingerprint(),
        "contract_sha256": contract.fingerprint(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    with replacing_folder(path) as folder:
        (folder / bundle.MODEL).write_bytes(to_onnx(pipeline, featurizer))
        shutil.copyfile(contract_path, folder / bundle.CONTRACT)
        (folder / bundle.BACKGROUND).write_text("[]", encoding="utf-8")
        (folder / bundle.PROFILE).touch()
        (folder / bundle.CARD).touch()
        bundle.write_manifest(folder, facts)
        opened = bundle.Bundle.open(folder, features=features)
        facts["min_batch"] = find_min_batch(opened, test)
        facts["parity"] = measure_parity(opened, pipeline, parts["test"])
        compared = choose_background(opened, parts["train"], params.explain.background_rows, params.seed)
        (folder / bundle.BACKGROUND).write_text(canonical_json(compared, indent=1) + "\n", encoding="utf-8")
        training = tables.to_columns(parts["train"], contract.inputs)
        scores = opened.predict(test).scores.astype(np.float64)
        reference = profile.build(contract, test, scores, opened.drift_features(test), training, previous)
        (folder / bundle.PROFILE).write_text(reference.text(), encoding="utf-8")
        (folder / bundle.CARD).write_text(
            card.render_card(facts, contract, reports["split"], reports["trained"], len(compared), cards),
            encoding="utf-8",
        )
        manifest = bundle.write_manifest(folder, facts)
    if bins_path is not None:
        with replacing(bins_path) as part:
            part.write_text(reference.bins.text(), encoding="utf-8")
    return manifest


def _slice_rows(columns: Columns, at: int, size: int) -> dict[str, np.ndarray]:
    return {name: values[at : at + size] for name, values in columns.items()}
