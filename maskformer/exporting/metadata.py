"""What another program must know of an exported file: it stands in the file itself, and as JSON beside it."""

from __future__ import annotations

import sys
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from maskformer.reports.tasks import INSTANCE_THRESHOLD, ClassTable
from maskformer.structures import Classes

from .graph import OUTPUTS
from .hugging_face_keys import name_model

KEY = "maskformer"  # of the JSON in an ONNX file's metadata_props, and in a .pt2 file's extra files

# Shape, type and meaning of the outputs of each task. N: instances; Q: queries; K: classes; h, w: the mask grid.
_MEANINGS = {
    "semantic": (("B,height,width", "int32", "class of each pixel"),),
    "panoptic": (
        ("B,height,width", "int32", "0: no segment, else one more than the segment's row"),
        ("B,Q", "int32", "class of each segment; -1: a row without a segment"),
        ("B,Q", "float32", "class probability of each segment"),
    ),
    "instance": (
        ("B,N", "float32", "score of each instance, best first"),
        ("B,N", "int32", "class of each instance; -1: a row without an instance"),
        ("B,N,height,width", "bool", "mask of each instance"),
    ),
    "queries": (
        ("B,Q,K+1", "float32", "logits of each query's class; the last is 'no object'"),
        ("B,Q,h,w", "float32", "logits of each query's mask, on a grid over the padded picture"),
    ),
}


def describe_export(
    cfg: CfgNode,
    classes: Classes | None,
    *,
    task: str,
    size: tuple[int, int] | None,
    precision: str,
    opset: int | None,
    licence: str,
) -> dict[str, Any]:
    """All that the file's users are told, as plain numbers, text, lists and dicts.

    Args:
        cfg: of the model.
        classes: the model's; None: not known, so they are numbered, and their colours are made up.
        task: one of ``graph.OUTPUTS``.
        size: (height, width) that pictures must have; None: any.
        precision: "float32", "float16" or "int8".
        opset: of ONNX; None: it is a program of PyTorch's.
        licence: of the weights; "": not stated.
    """
    return {
        "format_version": 1,
        "maskformer_version": getattr(sys.modules["maskformer"], "__version__", ""),
        "model": name_model(cfg) if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor" else "per-pixel baseline",
        "task": task,
        "precision": precision,
        "opset": opset,
        "licence_of_weights": licence or "not stated",
        "input": _describe_input(cfg, size),
        "outputs": _describe_outputs(task),
        "classes": _describe_classes(classes, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
        "thresholds": _describe_thresholds(cfg, task),
    }


def _describe_outputs(task: str) -> list[dict[str, str]]:
    return [
        {"name": name, "shape": shape, "type": kind, "meaning": meaning}
        for name, (shape, kind, meaning) in zip(OUTPUTS[task], _MEANINGS[task], strict=True)
    ]


def _describe_input(cfg: CfgNode, size: tuple[int, int] | None) -> dict[str, Any]:
    test, padding = cfg.MODEL.MASK_FORMER.TEST, [round(value) for value in cfg.MODEL.PIXEL_MEAN]
    if getattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "pads_with_black", False):
        padding = [0, 0, 0]
    return {
        "name": "images",
        "shape": ["B", 3, *(size or ("height", "width"))],
        "type": "uint8",
        "channel_order": "RGB",  # whatever INPUT.FORMAT is: the graph reorders
        "value_range": [0, 255],
        "size": size and list(size),
        # How pictures were resized as the model was tested, bilinear: the shorter side to the first, unless the longer
        # one would exceed the second; 0: not at all.
        "min_size_test": cfg.INPUT.MIN_SIZE_TEST,
        "max_size_test": cfg.INPUT.MAX_SIZE_TEST,
        "rounding_test": cfg.INPUT.ROUNDING_TEST,
        # RGB; what to fill with where a picture is smaller than a fixed size.
        "padding_colour": padding if cfg.INPUT.FORMAT == "RGB" else padding[::-1],
        "sliding_window": list(test.SLIDING_WINDOW),  # that the model was tested with; the graph sees pictures whole
    }


def _describe_classes(classes: Classes | None, num_classes: int) -> list[dict[str, Any]]:
    table = ClassTable.of(classes, num_classes)
    things = None if classes is None else classes.things
    return [
        {
            "id": index,
            "name": name,
            "colour": [round(255 * part) for part in color],
            "is_thing": None if things is None else index in things,
        }
        for index, (name, color) in enumerate(zip(table.names, table.colors, strict=True))
    ]


def _describe_thresholds(cfg: CfgNode, task: str) -> dict[str, Any]:
    """Those that the graph applies, and the score above which instances are shown, which it does not."""
    test = cfg.MODEL.MASK_FORMER.TEST
    if task == "panoptic":
        return {"object_mask": test.OBJECT_MASK_THRESHOLD, "overlap": test.OVERLAP_THRESHOLD}
    return {"shown_instance": INSTANCE_THRESHOLD} if task == "instance" else {}
