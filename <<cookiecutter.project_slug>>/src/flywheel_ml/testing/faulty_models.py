"""Breaks the ONNX model of a bundle, to see that nothing serves it."""

from typing import Literal

Fault = Literal["NaN", "missing operator"]


def break_model(content: bytes, fault: Fault) -> bytes:
    """Return the model with a fault in its output: it is NaN, or needs an operator that no runtime has."""
    from onnx import helper, load_model_from_string

    model = load_model_from_string(content)
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["sound" if name == output.name else name for name in node.output]
    if fault == "NaN":
        nodes = [
            helper.make_node("Sub", ["sound", "sound"], ["nothing"]),
            helper.make_node("Div", ["nothing", "nothing"], [output.name]),
        ]
    else:
        nodes = [helper.make_node("OperatorOfAnotherRuntime", ["sound"], [output.name])]
    model.graph.node.extend(nodes)
    broken: bytes = model.SerializeToString()
    return broken
