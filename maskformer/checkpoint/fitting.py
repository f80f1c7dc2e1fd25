"""Weights by our names as a model needs them: released differences with their backbone, other sizes of a ViT's tables.

EoMT's released weights with DINOv3 hold, of the backbone, what training added to DINOv3's own weights.
"""

from __future__ import annotations

import logging
import math
import os
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.modeling.backbones.vit import resample_positions
from maskformer.structures import InputError

from .layouts.detection import Conversion, convert_weights
from .layouts.layout import StateDict
from .layouts.vision_transformers import VIT
from .reading import find_weights_file, read_weights

logger = logging.getLogger(__name__)

_KEY = "MODEL.EOMT.DELTA_BASE"
_TABLE, _PATCHES = VIT + "pos_embed", VIT + "patch_embed.proj.weight"
_Q_BIAS = VIT + "blocks.0.attn.q_bias"  # of DINOv3's blocks alone
_NORM = re.compile(re.escape(VIT) + r"(?:.*\.)?norm\d?\.weight")
_MOST_PIXELS = 64 * 64  # of a patch: the matrix of its resize takes the square of it
_LEAST_POSITIVE = 0.75  # the share of positive factors in the norms of a whole backbone; of a difference about half are


def fit_to_model(conversion: Conversion, model: nn.Module | None, source: str) -> StateDict:
    """Complete and resample what a model can have of weights that are not yet its own.

    Args:
        conversion: the weights.
        model: of any architecture; its ``delta_base`` is what ``MODEL.EOMT.DELTA_BASE`` says. None: not known, and
            nothing is resampled.
        source: of the weights, for messages.

    Returns:
        All weights, by our names.

    Raises:
        InputError: they are differences, and the backbone that they are added to is not named, or is another's; or they
            are DINOv3's and the model has DINOv2's blocks, or the other way round.
    """
    state = conversion.state
    if conversion.layout.may_be_differences:
        state = _add_base(state, getattr(model, "delta_base", ""), source)
    expected = {} if model is None else model.state_dict()
    if VIT + "cls_token" in state.keys() & expected.keys():
        _check_kind(_Q_BIAS in state, _Q_BIAS in expected, source)
    for name, resample in ((_TABLE, _resample_table), (_PATCHES, resample_patches)):
        seen, like = state.get(name), expected.get(name)
        if seen is None or like is None or seen.shape == like.shape or seen.ndim != like.ndim:
            continue
        resampled = resample(seen, like)
        if resampled is not None:
            shapes = tuple(seen.shape), tuple(like.shape)
            logger.info("%s of %s is resampled, from shape %s to %s", name, source, *shapes)
            state = {**state, name: resampled}
    return state


def _check_kind(is_dinov3: bool, needs_dinov3: bool, source: str) -> None:
    if is_dinov3 != needs_dinov3:
        raise InputError(
            f"Weights {source} are of a vision transformer {'with' if is_dinov3 else 'without'} DINOv3's blocks, but "
            f"MODEL.EOMT.ROTARY is {needs_dinov3}: set it to {is_dinov3}, or MODEL.WEIGHTS to other weights."
        )


def _resample_table(table: Tensor, like: Tensor) -> Tensor | None:
    """A table of a square grid for another square grid; None: they are not that."""
    lengths = [table.shape[1], like.shape[1]]
    sides = [math.isqrt(length) for length in lengths]
    if not table.numel() or table.shape[2] != like.shape[2] or [side**2 for side in sides] != lengths:
        return None
    return resample_positions(table, (sides[0], sides[0]), (sides[1], sides[1]))


def resample_patches(kernels: Tensor, like: Tensor) -> Tensor | None:
    """Kernels that give of a resized patch what these give of the patch, as nearly as can be.

    Args:
        kernels: (D,3,h,w).
        like: of the size that is wanted.

    Returns:
        (D,3,h',w'); None: the channels are others, or these are no kernels of patches.

    Source: FlexiViT (arXiv 2212.08013), section 3.4: with the resize of a patch x as a matrix B, the kernel w' that
    minimises the expected (<x,w> - <Bx,w'>)^2 is pinv(B^T) w. The resize is bicubic with antialiasing.
    """
    height, width = kernels.shape[2:]
    if kernels.shape[:2] != like.shape[:2] or not 0 < height * width <= _MOST_PIXELS:
        return None
    pixels = torch.eye(height * width).view(-1, 1, height, width)
    resized = F.interpolate(pixels, tuple(like.shape[2:]), mode="bicubic", antialias=True)
    pseudo_inverse = torch.linalg.pinv(resized.flatten(1))  # (h'w', hw): the rows of B^T are resized pixels
    return (kernels.float().flatten(2) @ pseudo_inverse.T).unflatten(2, tuple(like.shape[2:])).to(kernels.dtype)


def _add_base(state: StateDict, base_path: str, source: str) -> StateDict:
    """Differences with what they are to be added to; anything else as it is."""
    if not base_path:
        if _are_differences(state):
            raise InputError(
                f"Weights {source} hold, of the backbone, differences to DINOv3's own weights: set {_KEY} to the file "
                f"or folder of the DINOv3 backbone of this size, or MODEL.WEIGHTS to whole weights."
            )
        return state
    base = _read_base(base_path)
    ours = {name: tensor for name, tensor in state.items() if name.startswith(VIT)}
    _check_alike(ours, base, source, base_path)
    to_zero = sum(_square_sum(tensor) for tensor in ours.values())
    to_base = sum(_square_sum(tensor.float() - base[name].float()) for name, tensor in ours.items())
    if to_base < to_zero:
        logger.warning(
            "%s is %s, but weights %s are whole: they are nearer to that backbone than to 0, so it is not added",
            _KEY, base_path, source,
        )  # fmt: skip
        return state
    return {**state, **{name: base[name].float() + tensor.float() for name, tensor in ours.items()}}


def _square_sum(tensor: Tensor) -> float:
    return float(tensor.float().square().sum())


def _are_differences(state: StateDict) -> bool:
    """Whether the factors of a backbone's norms are of both signs: of a whole one nearly all are positive."""
    norms = [tensor for name, tensor in state.items() if _NORM.fullmatch(name)]
    positive = sum(int((norm > 0).sum()) for norm in norms)
    return positive < _LEAST_POSITIVE * sum(norm.numel() for norm in norms)


def _read_base(path: str) -> StateDict:
    """The backbone in a file or folder that holds a DINOv3."""
    file = find_weights_file(os.path.expanduser(path))
    if not os.path.isfile(file):
        raise InputError(f"{_KEY} is {path}, which does not exist; expected the file or folder of a DINOv3 backbone.")
    conversion = convert_weights(read_weights(file)["model"], file)
    base = {name: tensor for name, tensor in conversion.state.items() if name.startswith(VIT)}
    if _Q_BIAS not in base or _TABLE in base:
        raise InputError(f"{_KEY} is {path}, which holds weights of {conversion.layout.name} and no DINOv3 backbone.")
    if conversion.layout.may_be_differences and _are_differences(base):
        raise InputError(f"{_KEY} is {path}, which holds differences itself; expected DINOv3's own weights.")
    return base


def _check_alike(ours: StateDict, base: StateDict, source: str, base_path: str) -> None:
    for name, tensor in ours.items():
        seen = tuple(base[name].shape) if name in base else "missing"
        if seen != tuple(tensor.shape):
            raise InputError(
                f"{_KEY} is {base_path}, whose {name} is {seen}, but {tuple(tensor.shape)} in weights {source}, which "
                "are to be added to it: set the key to the DINOv3 of their size."
            )
