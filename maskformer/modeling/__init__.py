"""The network: backbones, pixel_decoders, transformer, heads.

Importing registers backbones, heads and pixel decoders with Detectron2.
"""

from .backbones import D2SwinTransformer, build_resnet_deeplab_backbone, fold_frozen_norms, sum_residuals_in_place
from .heads import MaskFormerHead, MaskFormerPredictor, PerPixelBaselineHead, PerPixelBaselinePlusHead
from .pixel_decoders import BasePixelDecoder, TransformerEncoderPixelDecoder

__all__ = [
    "BasePixelDecoder",
    "D2SwinTransformer",
    "MaskFormerHead",
    "MaskFormerPredictor",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "TransformerEncoderPixelDecoder",
    "build_resnet_deeplab_backbone",
    "fold_frozen_norms",
    "sum_residuals_in_place",
]
