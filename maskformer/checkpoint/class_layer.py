"""Fine-tuning on other classes: which parameters belong to the classes, and which of them are trained anew."""

from __future__ import annotations

from collections.abc import Iterable

Mismatch = tuple[str, tuple[int, ...], tuple[int, ...]]  # parameter, shape in the file, shape in the model

# The classifier of each head; of PerPixelBaselinePlusHead, which has no class_embed, the queries: one is one class.
_HEAD = "sem_seg_head.predictor."
_CLASS_LAYER = (f"{_HEAD}class_embed.weight", f"{_HEAD}class_embed.bias", "criterion.empty_weight")
_PER_PIXEL_LAYER = (f"{_HEAD}weight", f"{_HEAD}bias")
_PER_PIXEL_PLUS_LAYER = (f"{_HEAD}query_embed.weight",)


def find_class_mismatches(mismatches: Iterable[Mismatch], names: Iterable[str]) -> list[Mismatch]:
    """Those of several mismatches that come from another number of classes and nothing else.

    Args:
        mismatches: parameters and buffers whose shape differs.
        names: of all parameters and buffers of the model.
    """
    names = set(names)
    by_head = (_CLASS_LAYER, _PER_PIXEL_LAYER, _PER_PIXEL_PLUS_LAYER)
    layer = next((layer for layer in by_head if layer[0] in names), ())
    return [
        (name, in_file, in_model)
        for name, in_file, in_model in mismatches
        if name in layer and in_file[1:] == in_model[1:]
    ]
