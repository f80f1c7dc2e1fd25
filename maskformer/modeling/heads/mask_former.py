"""MaskFormerHead: a pixel decoder and a query decoder on top of any backbone; MaskFormerNetwork: all three."""

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

from ..pixel_decoders import DecodedFeatures, PixelDecoder, build_pixel_decoder
from ..query_decoders import QueryDecoder, build_query_decoder

_ENCODED, _LEVELS, _EMBEDDINGS = "transformer_encoder", "multi_scale_pixel_decoder", "pixel_embedding"


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features -> Q classes and masks.

    Args:
        pixel_decoder: backbone features -> ``DecodedFeatures``.
        predictor: the query decoder; named as in the released weights.
        transformer_in_feature: what queries attend to: a backbone feature's name, or of the pixel decoder
            "transformer_encoder" (the encoded feature), "multi_scale_pixel_decoder" (the levels, for decoders that take
            several; others get the coarsest) or "pixel_embedding".
    """

    @configurable
    def __init__(self, *, pixel_decoder: PixelDecoder, predictor: QueryDecoder, transformer_in_feature: str):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Choose the feature and build the two parts; raises what ``choose_attended_feature`` does."""
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        name, channels = choose_attended_feature(cfg, input_shape, pixel_decoder)
        predictor = build_query_decoder(cfg, channels)
        if predictor.attends_to_levels and name != _LEVELS:
            raise InputError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}, expected {_LEVELS!r} (which "
                "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME MSDeformAttnPixelDecoder has) with TRANSFORMER_DECODER_NAME "
                f"{type(predictor).__name__}."
            )
        return {
            "pixel_decoder": pixel_decoder,
            "predictor": predictor,
            "transformer_in_feature": name,
        }

    def forward(self, features: dict[str, Tensor]) -> MaskPredictions:
        """Predict from backbone features, name -> (B, channels, rows, columns)."""
        decoded = self.pixel_decoder(features)
        feature = pick_attended_feature(self.transformer_in_feature, features, decoded)
        class_logits, mask_embeddings = self.predictor(feature, decoded)
        return MaskPredictions.from_embeddings(class_logits, mask_embeddings, decoded.mask_features)

    def encode(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What the masks of the last layer are made of: the part of a prediction that does not depend on the answer.

        Args:
            features: as for ``forward``; each is taken out when it is used, to free its memory.

        Returns:
            (B,Q,K+1) class logits, (B,Q,C) mask embeddings, and (B,channels,h,w), ``DecodedFeatures.finest``.
        """
        attended = {name: features[name] for name in features if name == self.transformer_in_feature}
        decoded = self.pixel_decoder.decode(features)
        feature = pick_attended_feature(self.transformer_in_feature, attended, decoded)
        del attended
        class_logits, mask_embeddings = self.predictor(feature, decoded)
        return class_logits[-1], mask_embeddings[-1], decoded.finest

    def compose(
        self, encoded: tuple[Tensor, Tensor, Tensor], select: Callable[[Tensor], Tensor] | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """What ``forward`` predicts in the last layer, in less time and memory: only the masks that are wanted.

        Args:
            encoded: what ``encode`` gave.
            select: (Q,K+1) class logits of an image -> (N,) int64, the queries to give; None: all.

        Returns:
            One pair an image: (N,K+1) class logits, (N,h,w) mask logits.
        """
        predictions = []
        for image_classes, image_embeddings, finest in zip(*encoded):
            if select is not None:
                queries = select(image_classes)
                image_classes, image_embeddings = image_classes[queries], image_embeddings[queries]
            masks = compose_masks(finest[None], self.pixel_decoder.mask_features, image_embeddings)
            predictions.append((image_classes, masks))
        return predictions


class MaskFormerNetwork(nn.Module):
    """The network alone, tensors in and out: what other programs run; ``torch.export`` takes it with any sizes.

    Args:
        backbone: images -> features.
        head: features -> predictions.
    """

    def __init__(self, backbone: nn.Module, head: MaskFormerHead):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) normalised images, H and W multiples of 32 -> (B,Q,K+1) class logits, (B,Q,h,w) mask logits."""
        return self.sem_seg_head(self.backbone(images)).final


def compose_masks(finest: Tensor, projection: Conv2d, mask_embeddings: Tensor) -> Tensor:
    """Mask logits of some queries, by one convolution whose filters are theirs where that is less arithmetic.

    The convolution that gives pixel embeddings and their product with mask embeddings are both linear: multiplied
    beforehand they are a convolution with N filters instead of C.

    Args:
        finest: (1,channels,h,w), see ``DecodedFeatures``.
        projection: likewise.
        mask_embeddings: (N,C).

    Returns:
        (N,h,w) logits.
    """
    num_queries, mask_dim = mask_embeddings.shape
    if num_queries == 0:
        return finest.new_zeros(0, *finest.shape[2:])
    weight, bias, padding = projection.weight, projection.bias, projection.padding
    filter_size = weight[0].numel()
    if num_queries * filter_size > mask_dim * (filter_size + num_queries):
        return torch.einsum("qc,chw->qhw", mask_embeddings, projection(finest)[0])
    assert bias is not None
    filters = (mask_embeddings @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    return F.conv2d(finest, filters, mask_embeddings @ bias, padding=padding)[0]


def choose_attended_feature(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], pixel_decoder: PixelDecoder
) -> tuple[str, int]:
    """What queries attend to: name and channels of the feature that ``MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE`` names.

    Raises:
        InputError: neither the backbone nor the pixel decoder has it.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    channels = {key: shape.channels for key, shape in input_shape.items()}
    if pixel_decoder.encoded_channels is not None:
        channels[_ENCODED] = pixel_decoder.encoded_channels
    if pixel_decoder.level_channels is not None:
        channels[_LEVELS] = pixel_decoder.level_channels
    channels[_EMBEDDINGS] = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM
    if name not in channels:
        raise InputError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}, expected one of: {', '.join(channels)}. "
            f"({_ENCODED!r} needs MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME TransformerEncoderPixelDecoder or "
            f"MSDeformAttnPixelDecoder, {_LEVELS!r} needs MSDeformAttnPixelDecoder.)"
        )
    return name, channels[name]


def pick_attended_feature(name: str, features: dict[str, Tensor], decoded: DecodedFeatures) -> Tensor:
    """The chosen feature (B, channels, rows, columns): the backbone's, or one of the pixel decoder's."""
    if name == _EMBEDDINGS:
        return decoded.mask_features
    if name == _LEVELS:
        return decoded.levels[0]
    if name != _ENCODED:
        return features[name]
    assert decoded.encoded is not None
    return decoded.encoded
