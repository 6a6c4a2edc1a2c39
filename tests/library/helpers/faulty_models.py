"""Models that answer a typical row, so that the server accepts them, but fail on more rows."""

from typing import Literal, get_args

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from flywheel_ml.core.bundle import Bundle

Fault = Literal["not_finite", "raised", "slow"]
FAULTS: tuple[Fault, ...] = ("not_finite", "raised")
ALL_FAULTS: tuple[Fault, ...] = get_args(Fault)
SAFE_ROWS = 2
"""A call with at most this many rows succeeds: 0.5 for each class. With more, the call or the later rows fail."""
LOOP_TURNS = 1_500_000
"""Iterations of a loop that takes about a second."""


def build_model(bundle: Bundle, fault: Fault, safe_rows: int = SAFE_ROWS, turns: int = LOOP_TURNS) -> bytes:
    """Build an ONNX model with the bundle's inputs and a fault."""
    tensor, number = helper.make_tensor_value_info, TensorProto.FLOAT
    widths = {"num": len(bundle.manifest.numeric), "cat": len(bundle.manifest.categorical)}
    types = {"num": number, "cat": TensorProto.STRING}
    inputs = [tensor(name, types[name], [None, wide]) for name, wide in widths.items() if wide]
    classes = len(bundle.manifest.classes)

    def constant(name: str, value: object, kind: type) -> NodeProto:
        array: np.ndarray = np.array(value, dtype=kind)
        onnx_type = {np.int64: TensorProto.INT64, np.float32: number, np.bool_: TensorProto.BOOL}[kind]
        return helper.make_node(
            "Constant", [], [name], value=helper.make_tensor(name, onnx_type, array.shape, array.ravel())
        )

    node = helper.make_node
    nodes = [
        constant("zero", 0, np.int64),
        constant("one", 1, np.int64),
        constant("safe", safe_rows, np.int64),
        constant("half", 0.5, np.float32),
        constant("nan", float("nan"), np.float32),
        constant("far", 10**6, np.int64),
        constant("halves", [0.5], np.float32),
        constant("turns", turns, np.int64),
        constant("yes", True, np.bool_),
        constant("axes", [1], np.int64),
        constant("wide", [1, classes], np.int64),
        node("Shape", [inputs[0].name], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"]),
        node("Range", ["zero", "rows", "one"], ["places"]),
        node("GreaterOrEqual", ["places", "safe"], ["is late"]),
        node("Greater", ["rows", "safe"], ["are many"]),
    ]
    if fault == "not_finite":
        nodes.append(node("Where", ["is late", "nan", "half"], ["value"]))
    else:
        if fault == "raised":
            nodes.append(node("Where", ["are many", "far", "zero"], ["which"]))
            nodes.append(node("Gather", ["halves", "which"], ["found"]))
        else:
            nodes.append(node("Where", ["are many", "turns", "zero"], ["count"]))
            nodes.append(node("Loop", ["count", "yes", "half"], ["found"], body=_turn()))
        nodes.append(node("Where", ["is late", "found", "found"], ["value"]))
    nodes.append(node("Unsqueeze", ["value", "axes"], ["column"]))
    nodes.append(node("Tile", ["column", "wide"], ["probabilities"]))
    graph = helper.make_graph(nodes, "model", inputs, [tensor("probabilities", number, [None, classes])])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    content: bytes = made.SerializeToString()
    return content


def _turn() -> GraphProto:
    """Build the loop's body, which passes the value on."""
    tensor, number = helper.make_tensor_value_info, TensorProto.FLOAT
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go on"], ["and on"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "turn",
        [tensor("turn", TensorProto.INT64, []), tensor("go on", TensorProto.BOOL, []), tensor("before", number, [])],
        [tensor("and on", TensorProto.BOOL, []), tensor("after", number, [])],
    )
