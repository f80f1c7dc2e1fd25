"""An exported file stands in evaluation where a model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from benchmarks.exported import ExportedModel


def write_brightest(path: Path) -> None:
    """A file made by hand: the label of a pixel is its brightest channel."""
    nodes = [
        helper.make_node("Cast", ["images"], ["scores"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.INT32),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, "height", "width"])
    labels = helper.make_tensor_value_info("labels", TensorProto.INT32, ["batch", "height", "width"])
    graph = helper.make_graph(nodes, "brightest", [images], [labels])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_labels_are_of_rgb_and_of_the_size_that_is_asked_for(tmp_path: Path):
    write_brightest(tmp_path / "model.onnx")
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)  # blue, green, red
    image[0, 0] = 200
    image[1, 1, 0] = image[2, 1, 1] = 100
    model = ExportedModel(tmp_path / "model.onnx", channel_order=(2, 1, 0))
    same, larger = model([{"image": image}, {"image": image, "height": 4, "width": 2}])
    assert same["sem_seg"].tolist() == [[2, 2], [1, 0]]
    assert np.array_equal(larger["sem_seg"], [[2, 2], [2, 2], [1, 0], [1, 0]])
    assert len(model.seconds) == 2 and min(model.seconds) >= 0
