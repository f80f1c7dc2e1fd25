"""MaskFormerHead: a pixel decoder and a predictor on top of any backbone."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from maskformer.structures import InputError, MaskPredictions

from ..pixel_decoders import BasePixelDecoder, build_pixel_decoder
from .predictor import MaskFormerPredictor

_ENCODED = "transformer_encoder"


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features -> Q classes and masks.

    Args:
        pixel_decoder: gives per-pixel embeddings and perhaps an encoded feature.
        predictor: gives classes and masks.
        transformer_in_feature: what queries attend to: a backbone feature's name, or "transformer_encoder" for the
            pixel decoder's encoded feature.
    """

    @configurable
    def __init__(self, *, pixel_decoder: BasePixelDecoder, predictor: MaskFormerPredictor, transformer_in_feature: str):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE`` and build the two parts.

        Raises:
            InputError: neither the backbone nor the pixel decoder has the feature that queries should attend to.
        """
        name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        channels = {key: shape.channels for key, shape in input_shape.items()}
        if pixel_decoder.encoded_channels is not None:
            channels[_ENCODED] = pixel_decoder.encoded_channels
        if name not in channels:
            raise InputError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}, expected one of: {', '.join(channels)}. "
                f"({_ENCODED!r} needs MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME TransformerEncoderPixelDecoder.)"
            )
        return {
            "pixel_decoder": pixel_decoder,
            "predictor": MaskFormerPredictor(cfg, channels[name]),
            "transformer_in_feature": name,
        }

    def forward(self, features: dict[str, Tensor]) -> MaskPredictions:
        """Predict from backbone features, name -> (B, channels, rows, columns)."""
        pixel_embeddings, encoded = self.pixel_decoder(features)
        source = encoded if self.transformer_in_feature == _ENCODED else features[self.transformer_in_feature]
        return self.predictor(source, pixel_embeddings)
