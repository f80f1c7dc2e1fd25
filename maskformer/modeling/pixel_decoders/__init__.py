"""Pixel decoders: backbone features -> per-pixel embeddings; chosen by ``MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME``."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from maskformer.structures import InputError

from .base import BasePixelDecoder
from .transformer_encoder import TransformerEncoderPixelDecoder

__all__ = ["BasePixelDecoder", "TransformerEncoderPixelDecoder", "build_pixel_decoder"]


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> BasePixelDecoder:
    """Build the pixel decoder that the configuration names.

    Raises:
        InputError: no pixel decoder has that name, or the backbone has no such features.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    valid = sorted(
        key for key, entry in SEM_SEG_HEADS_REGISTRY if isinstance(entry, type) and issubclass(entry, BasePixelDecoder)
    )
    if name not in valid:
        raise InputError(f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is {name!r}, expected one of: {', '.join(valid)}.")
    features = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    if not features or not set(features) <= input_shape.keys():
        known = ", ".join(input_shape)
        raise InputError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {features!r}, expected some of the backbone's: {known}.")
    return SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
