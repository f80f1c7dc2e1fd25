"""The network: backbones, pixel_decoders, query_decoders, transformer, heads.

Importing registers backbones, heads, pixel and query decoders.
"""

from .backbones import (
    D2SwinTransformer,
    build_backbone_by_name,
    build_resnet_deeplab_backbone,
    fold_frozen_norms,
)
from .heads import MaskFormerHead, MaskFormerNetwork, PerPixelBaselineHead, PerPixelBaselinePlusHead
from .pixel_decoders import BasePixelDecoder, DecodedFeatures, TransformerEncoderPixelDecoder
from .query_decoders import QUERY_DECODER_REGISTRY, MaskFormerPredictor, QueryDecoder, StandardTransformerDecoder

__all__ = [
    "QUERY_DECODER_REGISTRY",
    "BasePixelDecoder",
    "D2SwinTransformer",
    "DecodedFeatures",
    "MaskFormerHead",
    "MaskFormerNetwork",
    "MaskFormerPredictor",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "QueryDecoder",
    "StandardTransformerDecoder",
    "TransformerEncoderPixelDecoder",
    "build_backbone_by_name",
    "build_resnet_deeplab_backbone",
    "fold_frozen_norms",
]
