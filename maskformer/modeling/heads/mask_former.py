"""MaskFormerHead: a pixel decoder and a predictor on top of any backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.structures import InputError, MaskPredictions

from ..pixel_decoders import BasePixelDecoder, build_pixel_decoder
from ..query_decoders.standard import MaskFormerPredictor

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
        if not self.training:
            class_logits, mask_logits = zip(*self.predict(dict(features)))
            return MaskPredictions(torch.stack(class_logits)[None], torch.stack(mask_logits)[None])
        pixel_embeddings, encoded = self.pixel_decoder(features)
        attended = pick_attended_feature(self.transformer_in_feature, features, encoded)
        return self.predictor(attended, pixel_embeddings)

    def predict(
        self,
        features: dict[str, Tensor],
        select: Callable[[Tensor], Tensor] | None = None,
        *,
        overwrite: bool = False,
    ) -> list[tuple[Tensor, Tensor]]:
        """Predict from the last decoder layer, and only the masks that are wanted.

        Args:
            features: as for ``forward``; each is taken out when it is used, to free its memory.
            select: (Q,K+1) class logits of an image -> (N,) int64, the queries to give; None: all.
            overwrite: see ``BasePixelDecoder.build_pyramid``.

        Returns:
            One pair an image: (N,K+1) class logits, (N,h,w) mask logits.
        """
        attended = features.get(self.transformer_in_feature)
        # Before the pyramid where that can be: it then need not be kept beside it, and may be overwritten.
        embeddings = None if attended is None else self.predictor.predict_embeddings(attended)
        del attended
        pyramid, encoded = self.pixel_decoder.build_pyramid(features, overwrite=overwrite)
        if embeddings is None:
            assert encoded is not None
            embeddings = self.predictor.predict_embeddings(encoded)
        predictions = []
        for image, (class_logits, mask_embeddings) in enumerate(zip(*embeddings)):
            if select is not None:
                queries = select(class_logits)
                class_logits, mask_embeddings = class_logits[queries], mask_embeddings[queries]
            mask_logits = compose_masks(pyramid[image : image + 1], self.pixel_decoder.mask_features, mask_embeddings)
            predictions.append((class_logits, mask_logits))
        return predictions


def compose_masks(pyramid: Tensor, mask_features: Conv2d, mask_embeddings: Tensor) -> Tensor:
    """Mask logits of some queries, by one convolution whose filters are theirs where that is less arithmetic.

    The convolution that gives pixel embeddings and their product with mask embeddings are both linear: multiplied
    beforehand they are a convolution with N filters instead of C.

    Args:
        pyramid: (1,channels,h,w), the input of ``mask_features``.
        mask_features: the convolution from it to C channels.
        mask_embeddings: (N,C).

    Returns:
        (N,h,w) logits.
    """
    num_queries, mask_dim = mask_embeddings.shape
    if num_queries == 0:
        return pyramid.new_zeros(0, *pyramid.shape[2:])
    weight, bias, padding = mask_features.weight, mask_features.bias, mask_features.padding
    filter_size = weight[0].numel()
    if num_queries * filter_size > mask_dim * (filter_size + num_queries):
        return torch.einsum("qc,chw->qhw", mask_embeddings, mask_features(pyramid)[0])
    assert bias is not None
    filters = (mask_embeddings @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    return F.conv2d(pyramid, filters, mask_embeddings @ bias, padding=padding)[0]


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
