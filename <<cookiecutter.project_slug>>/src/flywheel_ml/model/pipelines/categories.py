"""Gradient boosting that splits listed categories into two sets, as scikit-learn does natively, in a graph for ONNX.

A tree for ONNX compares one number with one threshold. A set becomes a chain of equalities whose members share the node
that they lead to. ONNX Runtime evaluates such a chain as one test if its numbers are 1 to 32, so the graph numbers the
categories of each column from 1 again in every block of 32.
"""

from typing import Any, NamedTuple

import numpy as np

BLOCK = 32
"""Categories that one test of ONNX Runtime takes; as it happens also the bits in each word of scikit-learn's sets."""


class CategoryBlocks(NamedTuple):
    """Extra input columns for trees that test single categories.

    Block b holds the codes of the column `columns[b]`, less `offsets[b]`; `equalities` are the (tree, node) that ask
    for equality.
    """

    columns: list[int]
    offsets: list[int]
    equalities: list[tuple[int, int]]


def rewrite_as_equalities(estimator: Any) -> CategoryBlocks | None:
    """Rewrite a fitted gradient boosting in place, so that its trees test single categories; None if it has none.

    Afterwards it is good for conversion alone. A category that training has not seen goes where scikit-learn sends
    missing values: to the end of the chain, which asks for the categories of the other side.
    """
    if getattr(estimator, "is_categorical_", None) is None:
        return None
    native = np.flatnonzero(estimator.is_categorical_)
    # Scikit-learn moves these columns to the front, and numbers the codes that it saw.
    order = np.concatenate([native, np.flatnonzero(~estimator.is_categorical_)])
    codes = [seen.astype(np.int64) for seen in estimator._preprocessor.named_transformers_["encoder"].categories_]
    counts = [int(seen.max()) // BLOCK + 1 for seen in codes]
    firsts = estimator.n_features_in_ + np.cumsum([0, *counts])
    trees = [tree for iteration in estimator._predictors for tree in iteration]
    equalities = [(at, node) for at, tree in enumerate(trees) for node in _rewrite(tree, order, codes, firsts)]
    estimator.is_categorical_ = estimator._preprocessor = None
    return CategoryBlocks(
        [int(column) for column, count in zip(native, counts, strict=True) for _ in range(count)],
        [block * BLOCK - 1 for count in counts for block in range(count)],
        equalities,
    )


def attach_blocks(model: Any, blocks: CategoryBlocks) -> None:
    """Add the blocks to the inputs of an ONNX model's trees, and change their tests to equality."""
    from onnx import helper, numpy_helper

    graph = model.graph
    (place,) = [at for at, node in enumerate(graph.node) if node.op_type.startswith("TreeEnsemble")]
    trees = graph.node[place]
    attributes = {attribute.name: attribute for attribute in trees.attribute}
    nodes = zip(attributes["nodes_treeids"].ints, attributes["nodes_nodeids"].ints, strict=True)
    found = {node: at for at, node in enumerate(nodes)}
    for equality in blocks.equalities:
        attributes["nodes_modes"].strings[found[equality]] = b"BRANCH_EQ"
    parts = {"columns": np.array(blocks.columns), "offsets": np.array(blocks.offsets, dtype=np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, f"block_{name}") for name, value in parts.items())
    (seen,) = trees.input
    for at, node in enumerate(
        (
            helper.make_node("Gather", [seen, "block_columns"], ["block_codes"], axis=1),
            helper.make_node("Sub", ["block_codes", "block_offsets"], ["blocks"]),
            helper.make_node("Concat", [seen, "blocks"], ["columns_and_blocks"], axis=1),
        )
    ):
        graph.node.insert(place + at, node)
    graph.node[place + 3].input[0] = "columns_and_blocks"


def _rewrite(tree: Any, order: np.ndarray, codes: list[np.ndarray], firsts: np.ndarray) -> list[int]:
    """Replace the sets of a tree with chains of equality tests; return their nodes."""
    nodes = tree.nodes.copy()
    branches = nodes["is_leaf"] == 0
    sets = np.flatnonzero(branches & (nodes["is_categorical"] == 1)).tolist()
    nodes["feature_idx"][branches] = order[nodes["feature_idx"][branches]]
    links: list[np.ndarray] = []
    places: list[int] = []
    for at in sets:
        column = int(tree.nodes["feature_idx"][at])
        missing_left = bool(nodes["missing_go_to_left"][at])
        left = _unpack_members(tree.raw_left_cat_bitsets[nodes["bitset_idx"][at]], len(codes[column]))
        wanted = codes[column][~left if missing_left else left]
        hit, miss = ("right", "left") if missing_left else ("left", "right")
        end = len(nodes) + len(links)
        chain = np.repeat(nodes[at : at + 1], len(wanted))
        here = [at, *range(end, end + len(wanted) - 1)]
        chain["right"], chain["left"] = [*here[1:], int(nodes[miss][at])], nodes[hit][at]
        block = np.maximum(wanted, 0) // BLOCK
        chain["feature_idx"], chain["num_threshold"] = firsts[column] + block, wanted + 1 - block * BLOCK
        chain["missing_go_to_left"] = 0
        nodes[at] = chain[0]
        links += list(chain[1:])
        places += here
    tree.nodes = np.concatenate([nodes, np.array(links, dtype=nodes.dtype)]) if links else nodes
    return places


def _unpack_members(words: np.ndarray, size: int) -> np.ndarray:
    """Which of `size` numbers are in a set, as booleans; `words` holds their bits."""
    at = np.arange(size)
    bits: np.ndarray = np.right_shift(words[at // BLOCK], (at % BLOCK).astype(np.uint32)) & 1
    return bits.astype(bool)
