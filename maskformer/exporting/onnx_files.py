"""What is done to an ONNX file after it was written: names, quantisation."""

from __future__ import annotations

import ast
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.files import folder_beside

_SCOPES = "pkg.torch.onnx.name_scopes"  # where PyTorch says which module a node was in
_FLOATS = (1, 10)  # ONNX's float32 and float16


def tidy(path: Path) -> list[str]:
    """Take out of a file where its operations stood in the source, on the machine that wrote it.

    Returns:
        The names of the values that hold class and mask logits; of a per-pixel model, the one that holds its logits.
    """
    import onnx

    model = onnx.load(path)
    logits = _find_logits(model)
    for part in (model.graph.node, model.graph.value_info, model.graph.input, model.graph.output):
        for each in part:
            del each.metadata_props[:]
            each.doc_string = ""
    onnx.save(model, path)
    return logits


def _find_logits(model: Any) -> list[str]:
    """Floats that leave the module "network"."""
    is_inside: dict[str, bool] = {}  # of values that nodes make
    used = [output.name for output in model.graph.output]
    for node in model.graph.node:
        scopes = {each.key: each.value for each in node.metadata_props}.get(_SCOPES)
        if scopes is None:  # of what the exporter's optimiser made, which stays where its inputs are
            inside = any(is_inside.get(name, False) for name in node.input)
        else:
            inside = ast.literal_eval(scopes)[1:2] == ["network"]
        is_inside.update(dict.fromkeys(node.output, inside))
        used += [] if inside else node.input
    leaving = {name for name in used if is_inside.get(name, False)}
    values = [value for value in (*model.graph.value_info, *model.graph.output) if value.name in leaving]
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.elem_type in _FLOATS}
    return sorted((name for name, rank in ranks.items() if rank in (3, 4)), key=lambda name: ranks[name])


def quantise(path: Path, pictures: Iterable[np.ndarray], metadata: Mapping[str, str]) -> None:
    """Have a file compute convolutions in int8, with a scale for each channel of weights.

    Attention and what makes results of logits stay float32: docs/export.md has what that costs and saves.

    Args:
        path: of a file in float32, which is replaced.
        pictures: (B,3,height,width) uint8 each, which show what values activations have.
        metadata: texts that the file holds by name.
    """
    import onnx
    from onnxruntime import quantization

    name = onnx.load(path).graph.input[0].name
    with folder_beside(path) as folder, _quiet():
        prepared = Path(folder, "prepared.onnx")
        quantization.quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            path,
            _feeds(name, pictures),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def _feeds(name: str, pictures: Iterable[np.ndarray]) -> Any:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Gives one picture after another; None at the end."""

        feeds = ({name: picture} for picture in pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that quantisation writes to the root logger for every tensor."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
