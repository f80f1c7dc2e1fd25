"""The network: backbones, pixel_decoders, query_decoders, transformer, heads; and EoMT's, which is one: eomt.

Importing registers backbones, heads, pixel and query decoders.
"""

from .backbones import (
    D2SwinTransformer,
    TimmBackbone,
    build_backbone_by_name,
    build_resnet_deeplab_backbone,
    fold_frozen_norms,
)
from .eomt import EoMTNetwork, build_eomt_network
from .heads import MaskFormerHead, MaskFormerNetwork, PerPixelBaselineHead, PerPixelBaselinePlusHead
from .pixel_decoders import (
    BasePixelDecoder,
    DecodedFeatures,
    MSDeformAttnPixelDecoder,
    PixelDecoder,
    TransformerEncoderPixelDecoder,
)
from .query_decoders import (
    QUERY_DECODER_REGISTRY,
    MaskFormerPredictor,
    MultiScaleMaskedTransformerDecoder,
    QueryDecoder,
    StandardTransformerDecoder,
)

__all__ = [
    "QUERY_DECODER_REGISTRY",
    "BasePixelDecoder",
    "D2SwinTransformer",
    "DecodedFeatures",
    "EoMTNetwork",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "MaskFormerNetwork",
    "MaskFormerPredictor",
    "MultiScaleMaskedTransformerDecoder",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "PixelDecoder",
    "QueryDecoder",
    "StandardTransformerDecoder",
    "TimmBackbone",
    "TransformerEncoderPixelDecoder",
    "build_backbone_by_name",
    "build_eomt_network",
    "build_resnet_deeplab_backbone",
    "fold_frozen_norms",
]
