"""The original repository's checkpoints, whose names are ours, and Detectron2's backbones."""

from __future__ import annotations

import re

from .layout import Layout, StateDict

_OLD_PIXEL_DECODER = re.compile(
    r"^((?:module\.)?sem_seg_head\.)(?=(?:adapter_\d|layer_\d|mask_features\.|input_proj\.|transformer\.))"
)


def rename_old_layout(state: StateDict) -> StateDict:
    """Bring older MaskFormer checkpoints, whose head held the pixel decoder's parameters itself, to today's names.

    It looks at the names alone: a state dict of plain arrays has no version to look at.

    Args:
        state: parameters by name, in the old layout, today's, or another model's.

    Returns:
        The same tensors in the same order; ``sem_seg_head.layer_1.weight``, for one, is now
        ``sem_seg_head.pixel_decoder.layer_1.weight``.
    """
    return {_OLD_PIXEL_DECODER.sub(r"\1pixel_decoder.", name): tensor for name, tensor in state.items()}


def _add_prefix(state: StateDict) -> StateDict:
    is_part = re.compile(r"stem\.(?!fc)|res[2-5]\.").match  # stem.fc classifies ImageNet
    return {f"backbone.{name}" if is_part(name) else name: tensor for name, tensor in state.items()}


ORIGINAL = Layout(
    name="MaskFormer (this package or the original)", marks=(r"sem_seg_head\.",), convert=rename_old_layout
)
BACKBONE = Layout(
    name="MaskFormer's backbone alone", marks=(r"backbone\.(?:stem|patch_embed)\.",), convert=dict, backbone_only=True
)
DETECTRON2_RESNET = Layout(
    name="Detectron2 ResNet",
    marks=(r"stem\.conv1\.weight$", r"res2\.0\."),
    convert=_add_prefix,
    backbone_only=True,
)
