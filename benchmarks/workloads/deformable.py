"""The deformable encoder of Mask2Former's pixel decoder, forward: sampled our way, and map by map as it is defined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.definitions_of_points import deformable_attention
from maskformer.modeling.pixel_decoders.multi_scale import DeformableEncoder
from maskformer.modeling.transformer import deformable

STRIDES = (32, 16, 8)
DIM = 256


def set_up(*, implementation: str, length: int = 1024, layers: int = 6, device: str = "cpu") -> Callable[[], Any]:
    """A unit is the encoder's forward pass over three levels of one image.

    Args:
        implementation: "maskformer" or "definition", which differ in how values are sampled.
        length: of the image's sides, in pixels.
        layers: of the encoder.
        device: see ``Accelerator``.
    """
    if implementation == "definition":
        deformable.sample_values = _sample_as_defined  # in this process, which does nothing else
    encoder = DeformableEncoder(dim=DIM, num_layers=layers, num_heads=8, num_levels=len(STRIDES), dropout=0.0)
    encoder = encoder.to(device).eval()
    levels = [torch.randn(1, DIM, length // stride, length // stride, device=device) for stride in STRIDES]

    @torch.inference_mode()
    def unit() -> None:
        encoder(levels)

    return unit


def _sample_as_defined(values: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    return deformable_attention(values, sizes, locations, weights)
