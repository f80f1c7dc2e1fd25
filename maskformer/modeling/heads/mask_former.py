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
        """Choose the feature and build the two parts; raises what ``choose_attended_feature`` does."""
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        name, channels = choose_attended_feature(cfg, input_shape, pixel_decoder)
        return {
            "pixel_decoder": pixel_decoder,
            "predictor": MaskFormerPredictor(cfg, channels),
            "transformer_in_feature": name,
        }

    def forward(self, features: dict[str, Tensor]) -> MaskPredictions:
        """Predict from backbone features, name -> (B, channels, rows, columns)."""
        pixel_embeddings, encoded = self.pixel_decoder(features)
        attended = pick_attended_feature(self.transformer_in_feature, features, encoded)
        return self.predictor(attended, pixel_embeddings)


def choose_attended_feature(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], pixel_decoder: BasePixelDecoder
) -> tuple[str, int]:
    """What queries attend to: name and channels of the feature that ``MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE`` names.

    Raises:
        InputError: neither the backbone nor the pixel decoder has it.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    channels = {key: shape.channels for key, shape in input_shape.items()}
    if pixel_decoder.encoded_channels is not None:
        channels[_ENCODED] = pixel_decoder.encoded_channels
    if name not in channels:
        raise InputError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}, expected one of: {', '.join(channels)}. "
            f"({_ENCODED!r} needs MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME TransformerEncoderPixelDecoder.)"
        )
    return name, channels[name]


def pick_attended_feature(name: str, features: dict[str, Tensor], encoded: Tensor | None) -> Tensor:
    """The chosen feature (B, channels, rows, columns): the backbone's, or what the pixel decoder encoded."""
    if name != _ENCODED:
        return features[name]
    assert encoded is not None
    return encoded
