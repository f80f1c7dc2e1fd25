"""The network: pixel_decoders, transformer, heads. The ResNet backbones are Detectron2's.

Importing registers the heads and pixel decoders with Detectron2.
"""

from .heads import MaskFormerHead, MaskFormerPredictor
from .pixel_decoders import BasePixelDecoder, TransformerEncoderPixelDecoder

__all__ = ["BasePixelDecoder", "MaskFormerHead", "MaskFormerPredictor", "TransformerEncoderPixelDecoder"]
