"""MultiScaleMaskedTransformerDecoder: queries look at three levels in turn, each only where its own mask is."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..pixel_decoders import NUM_LEVELS, DecodedFeatures
from ..transformer import (
    Residual,
    ResidualLayer,
    attend,
    initialise_matrices,
    multi_head_attention,
    sine_position_embedding,
)
from .base import QUERY_DECODER_REGISTRY, QueryDecoder, decoder_options
from .standard import MLP, input_projection


class SelfAttentionBlock(Residual):
    """Queries look at each other.

    Args:
        dim: D.
        num_heads: attention heads; divides D.
        dropout: probability.
        pre_norm: see ``Residual``.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float, pre_norm: bool):
        super().__init__(dropout=dropout, pre_norm=pre_norm)
        self.self_attn = multi_head_attention(dim, num_heads, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, position: Tensor) -> Tensor:
        """Refine queries (B,Q,D); the position (Q,D) is added to q and k."""
        return self.residual(queries, self.norm, lambda x: attend(self.self_attn, x + position, x + position, x))


class CrossAttentionBlock(Residual):
    """Queries look at the image, where they may.

    Args:
        dim: D.
        num_heads: attention heads; divides D.
        dropout: probability.
        pre_norm: see ``Residual``.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float, pre_norm: bool):
        super().__init__(dropout=dropout, pre_norm=pre_norm)
        self.multihead_attn = multi_head_attention(dim, num_heads, dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """Refine queries (B,Q,D) by keys and values (B,cells,D), where ``allowed`` (B,Q,cells) is true."""
        return self.residual(
            queries, self.norm, lambda x: attend(self.multihead_attn, x + position, keys, values, allowed)
        )


class FeedForwardBlock(ResidualLayer):
    """The feed-forward network of a layer.

    Args:
        dim: D.
        dim_feedforward: hidden width.
        dropout: probability.
        pre_norm: see ``Residual``.
    """

    def __init__(self, *, dim: int, dim_feedforward: int, dropout: float, pre_norm: bool):
        super().__init__(dim=dim, dim_feedforward=dim_feedforward, dropout=dropout, pre_norm=pre_norm)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor) -> Tensor:
        """Refine queries (B,Q,D)."""
        return self.residual(queries, self.norm, self.feed_forward)


@QUERY_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(QueryDecoder):
    """Mask2Former's decoder: learned queries predict before the first layer and after each.

    A layer is masked cross-attention to one of the pixel decoder's levels, self-attention, and a feed-forward network.

    Args:
        in_channels: of the levels.
        num_classes: K.
        num_queries: Q.
        dim: D.
        mask_dim: C.
        num_decoder_layers: L, one more than there are layers: predictions are counted.
        num_heads: attention heads; divides D.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability.
        pre_norm: normalise before each block.
        enforce_input_proj: a 1x1 convolution on each level even if it has D channels already.
        deep_supervision: predict from every decoder layer during training.

    Source: Mask2Former (arXiv 2112.01527), section 3.2, equations 1 to 3.
    """

    attends_to_levels = True
    compares_points = True
    segments_within_masks = True

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        num_queries: int,
        dim: int,
        mask_dim: int,
        num_decoder_layers: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        enforce_input_proj: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        attention: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "dropout": dropout, "pre_norm": pre_norm}
        feed_forward: dict[str, Any] = {
            "dim": dim, "dim_feedforward": dim_feedforward, "dropout": dropout, "pre_norm": pre_norm,
        }  # fmt: skip
        num_layers = num_decoder_layers - 1
        # All names are those of the released weights.
        self.transformer_self_attention_layers = _stack(SelfAttentionBlock, num_layers, attention)
        self.transformer_cross_attention_layers = _stack(CrossAttentionBlock, num_layers, attention)
        self.transformer_ffn_layers = _stack(FeedForwardBlock, num_layers, feed_forward)
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(num_queries, dim)  # what queries begin with
        self.query_embed = nn.Embedding(num_queries, dim)  # their position
        self.level_embed = nn.Embedding(NUM_LEVELS, dim)
        self.input_proj = nn.ModuleList(
            input_projection(in_channels, dim, enforce_input_proj) for _ in range(NUM_LEVELS)
        )
        self.class_embed = nn.Linear(dim, num_classes + 1)  # index K is "no object"
        self.mask_embed = MLP(dim, dim, mask_dim, num_layers=3)
        self.deep_supervision = deep_supervision

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, Any]:
        """Read ``MODEL.MASK_FORMER`` and the widths of ``MODEL.SEM_SEG_HEAD``."""
        return {**decoder_options(cfg), "in_channels": in_channels}

    def forward(self, feature: Tensor, decoded: DecodedFeatures) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See ``QueryDecoder.forward``; queries attend to ``decoded.levels``, not to the one feature."""
        keys, values = zip(*(self._project(index, level) for index, level in enumerate(decoded.levels)))
        pixels = [decoded.resized_mask_features(level.shape[2:]).flatten(2) for level in decoded.levels]
        position = self.query_embed.weight
        queries = self.query_feat.weight.expand(values[0].shape[0], -1, -1)  # len() is no symbol in an export
        outputs = [self._predict(queries)]
        layers = zip(
            self.transformer_cross_attention_layers, self.transformer_self_attention_layers, self.transformer_ffn_layers
        )
        for index, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = index % NUM_LEVELS
            allowed = may_attend(outputs[-1][1].detach() @ pixels[level])
            queries = cross_attention(queries, position, keys[level], values[level], allowed)
            queries = feed_forward(self_attention(queries, position))
            outputs.append(self._predict(queries))
        supervised = outputs if self.training and self.deep_supervision else outputs[-1:]
        normalised, mask_embeddings = (torch.stack(some) for some in zip(*supervised))
        return self.class_embed(normalised), mask_embeddings

    def _project(self, index: int, level: Tensor) -> tuple[Tensor, Tensor]:
        """(B,cells,D) keys and values of a level."""
        projected = self.input_proj[index](level)
        values = projected.flatten(2).mT + self.level_embed.weight[index]
        rows, columns = projected.shape[2:]
        position = sine_position_embedding(rows, columns, projected.shape[1], projected.device)
        return values + position.to(values.dtype).flatten(1).mT, values

    def _predict(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(B,Q,D) normalised queries and (B,Q,C) mask embeddings."""
        normalised = self.decoder_norm(queries)
        return normalised, self.mask_embed(normalised)


def may_attend(mask_logits: Tensor) -> Tensor:
    """Where each query may look: in its mask; everywhere, if its mask is empty, for no place at all would give NaN.

    Args:
        mask_logits: (B,Q,cells), of the masks on the level's grid.

    Returns:
        (B,Q,cells) bool.

    Source: Mask2Former (arXiv 2112.01527), section 3.2.1, equation 2.
    """
    inside = ~(mask_logits < 0)  # sigmoid < 0.5 is outside
    return inside | ~inside.any(-1, keepdim=True)


def _stack(block: type[nn.Module], num_layers: int, options: dict[str, Any]) -> nn.ModuleList:
    blocks = nn.ModuleList(block(**options) for _ in range(num_layers))
    initialise_matrices(blocks)
    return blocks
