"""What a query decoder is, and the registry that ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` chooses from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from maskformer.structures import check_choice

from ..pixel_decoders import DecodedFeatures
from ..transformer import layer_options

QUERY_DECODER_REGISTRY: Registry = Registry("QUERY_DECODER")


class QueryDecoder(nn.Module, ABC):
    """Decoded features -> the class and the mask embedding of each query; built from (cfg, in_channels)."""

    attends_to_levels = False  # to ``decoded.levels``, and not to the feature
    compares_points = False  # as its authors trained it: masks are compared at sampled points, not at every pixel
    segments_within_masks = False  # as its authors infer: see ``within_masks`` of ``inference.panoptic_inference``

    @abstractmethod
    def forward(self, feature: Tensor, decoded: DecodedFeatures) -> tuple[Tensor, Tensor]:
        """Predict Q classes, and what makes masks of pixel embeddings (``MaskPredictions.from_embeddings``).

        Args:
            feature: (B, in_channels, rows, columns), what queries attend to.
            decoded: the pixel decoder's.

        Returns:
            (L,B,Q,K+1) class logits and (L,B,Q,C) mask embeddings: of every supervised layer while training, else of
            the last one alone (L = 1).
        """


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
