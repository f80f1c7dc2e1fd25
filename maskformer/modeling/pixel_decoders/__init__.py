"""Pixel decoders: backbone features -> per-pixel embeddings; chosen by ``MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME``."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from maskformer.structures import InputError, check_choice

from .base import BasePixelDecoder, DecodedFeatures, PixelDecoder
from .multi_scale import NUM_LEVELS, MSDeformAttnPixelDecoder
from .transformer_encoder import TransformerEncoderPixelDecoder

__all__ = [
    "NUM_LEVELS",
    "BasePixelDecoder",
    "DecodedFeatures",
    "MSDeformAttnPixelDecoder",
    "PixelDecoder",
    "TransformerEncoderPixelDecoder",
    "build_pixel_decoder",
]


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> PixelDecoder:
    """Build the pixel decoder that the configuration names.

    Raises:
        InputError: no pixel decoder has that name, or the backbone has no such features.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    entries = {key: entry for key, entry in SEM_SEG_HEADS_REGISTRY if isinstance(entry, type)}
    decoders = [key for key, entry in entries.items() if issubclass(entry, PixelDecoder)]
    check_choice(name, decoders, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME")
    features = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    if not features or not set(features) <= input_shape.keys():
        known = ", ".join(input_shape)
        raise InputError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {features!r}, expected some of the backbone's: {known}.")
    return entries[name](cfg, input_shape)
