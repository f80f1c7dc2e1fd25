"""What a query decoder is, and the registry that ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` chooses from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from maskformer.structures import MaskPredictions, check_choice

from ..pixel_decoders import DecodedFeatures
from ..transformer import layer_options

QUERY_DECODER_REGISTRY: Registry = Registry("QUERY_DECODER")


class QueryDecoder(nn.Module, ABC):
    """Decoded features -> the class and the mask of each query; built from (cfg, in_channels)."""

    attends_to_levels = False  # to ``decoded.levels``, and not to the feature
    compares_points = False  # as its authors trained it: masks are compared at sampled points, not at every pixel
    segments_within_masks = False  # as its authors infer: see ``within_masks`` of ``inference.panoptic_inference``

    def forward(self, feature: Tensor, decoded: DecodedFeatures) -> MaskPredictions:
        """Predict Q classes and masks.

        Args:
            feature: (B, in_channels, rows, columns), what queries attend to.
            decoded: the pixel decoder's.

        Returns:
            Predictions of every supervised layer while training, else of the last one alone (L = 1).
        """
        class_logits, mask_embeddings = self.predict_embeddings(feature, decoded)
        return MaskPredictions(
            class_logits=class_logits,
            mask_logits=multiply(mask_embeddings, decoded.mask_features),
            mask_embeddings=mask_embeddings,
            pixel_embeddings=decoded.mask_features,
        )

    @abstractmethod
    def predict_embeddings(self, feature: Tensor, decoded: DecodedFeatures) -> tuple[Tensor, Tensor]:
        """The same up to the product with pixel embeddings: (L,B,Q,K+1) class logits, (L,B,Q,C) mask embeddings."""


def multiply(mask_embeddings: Tensor, pixel_embeddings: Tensor) -> Tensor:
    """Products of (L,B,Q,C) with (B,C,h,w), summed over C: (L,B,Q,h,w).

    ``torch.einsum`` would do the same with a view of a non-contiguous tensor, which some accelerators refuse.
    """
    of_image = mask_embeddings.transpose(0, 1)  # one matrix product for each image, whatever L is
    products = of_image.flatten(1, 2) @ pixel_embeddings.flatten(2)
    return products.unflatten(2, pixel_embeddings.shape[2:]).unflatten(1, of_image.shape[1:3]).transpose(0, 1)


def decoder_options(cfg: CfgNode) -> dict[str, Any]:
    """Keyword arguments that every query decoder takes, of ``MODEL.MASK_FORMER`` and ``MODEL.SEM_SEG_HEAD``."""
    node, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    return {
        **layer_options(cfg),
        "num_classes": head.NUM_CLASSES,
        "num_queries": node.NUM_OBJECT_QUERIES,
        "dim": node.HIDDEN_DIM,
        "mask_dim": head.MASK_DIM,
        "num_decoder_layers": node.DEC_LAYERS,
        "enforce_input_proj": node.ENFORCE_INPUT_PROJ,
        "deep_supervision": node.DEEP_SUPERVISION,
    }


def build_query_decoder(cfg: CfgNode, in_channels: int) -> QueryDecoder:
    """Build the query decoder that the configuration names.

    Args:
        cfg: ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME``, and what that decoder reads.
        in_channels: of the feature that queries attend to.

    Raises:
        InputError: no query decoder has that name.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    check_choice(name, (key for key, _ in QUERY_DECODER_REGISTRY), "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME")
    return QUERY_DECODER_REGISTRY.get(name)(cfg, in_channels)
