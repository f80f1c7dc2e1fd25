"""An ONNX file made by hand, whose results one can see."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_brightest(path: Path) -> None:
    """The label of a pixel is its brightest channel; the file's values "scores" are the channels as floats."""
    nodes = [
        helper.make_node("Cast", ["images"], ["scores"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.INT32),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, "height", "width"])
    labels = helper.make_tensor_value_info("labels", TensorProto.INT32, ["batch", "height", "width"])
    graph = helper.make_graph(nodes, "brightest", [images], [labels])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
