"""What is done to an ONNX file after it was written, on files made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from maskformer.exporting.onnx_files import quantise, tidy

RNG = np.random.default_rng(0)


def in_module(node: onnx.NodeProto, *scopes: str) -> onnx.NodeProto:
    """Mark where a node was, as PyTorch does."""
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(["", *scopes, node.output[0]]))
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/somebody/network.py")
    return node


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Pictures -> convolution and mean over pixels, in the network -> label map, outside of it."""
    nodes = [
        in_module(helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)),
        in_module(helper.make_node("Conv", ["floats", "weight"], ["masks"]), "network", "network.head"),
        helper.make_node("Identity", ["masks"], ["same"]),  # of an optimiser: nobody says where it was
        in_module(helper.make_node("ReduceMean", ["same", "axes"], ["classes"], keepdims=0), "network"),
        in_module(helper.make_node("Shape", ["masks"], ["size"]), "network"),
        in_module(helper.make_node("Softmax", ["classes"], ["probs"], axis=1)),
        in_module(helper.make_node("ReduceMax", ["probs", "last"], ["best"], keepdims=1)),
        in_module(helper.make_node("Unsqueeze", ["best", "two"], ["scale"])),
        in_module(helper.make_node("Mul", ["masks", "scale"], ["scores"])),
        in_module(helper.make_node("ArgMax", ["scores"], ["index"], axis=1, keepdims=0)),
        in_module(helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.INT32)),
    ]
    weight = RNG.normal(size=(4, 3, 1, 1)).astype(np.float32) * np.array([1, 10, 0.1, 1], np.float32).reshape(
        4, 1, 1, 1
    )
    constants = {"weight": weight, "axes": np.array([3]), "last": np.array([1, 2]), "two": np.array([3])}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("labels", TensorProto.INT32, ["batch", "height", "width"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        value_info=[
            helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["batch", 4, "height", "width"]),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, ["batch", 4, "height", "width"]),
            helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["batch", 4, "height"]),
            helper.make_tensor_value_info("size", TensorProto.INT64, [4]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"maskformer": "told"})
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def run(path: Path, pictures: np.ndarray) -> np.ndarray:
    (labels,) = onnxruntime.InferenceSession(path).run(None, {"images": pictures})
    return labels


def test_tidied_file_names_its_logits_and_tells_nothing_of_the_source(path: Path):
    pictures = RNG.integers(0, 256, (2, 3, 5, 6), dtype=np.uint8)
    before = run(path, pictures)
    assert tidy(path) == ["classes", "masks"]  # floats that leave the network: of three axes, and of four
    assert b"somebody" not in path.read_bytes()
    assert {each.key: each.value for each in onnx.load(path).metadata_props} == {"maskformer": "told"}
    assert (run(path, pictures) == before).all()


def test_quantised_convolutions_have_a_scale_a_channel_and_the_metadata_stay(path: Path):
    pictures = RNG.integers(0, 256, (8, 3, 16, 20), dtype=np.uint8)
    tidy(path)
    before = run(path, pictures)
    quantise(path, (picture[None] for picture in pictures), {"maskformer": "told"})
    model = onnx.load(path)
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    scales = [
        constants[node.input[1]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and constants[node.input[1]].ndim == 1
    ]
    assert [len(scale) for scale in scales] == [4]
    assert scales[0][1] > 20 * scales[0][2]  # a large and a small channel
    assert {each.key: each.value for each in model.metadata_props}["maskformer"] == "told"
    assert (run(path, pictures) == before).mean() > 0.95
    assert [each.name for each in path.parent.iterdir()] == [path.name]
