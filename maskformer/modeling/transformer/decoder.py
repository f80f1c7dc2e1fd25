"""Queries look at each other and at the image, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import ResidualLayer, attend, multi_head_attention


class TransformerDecoderLayer(ResidualLayer):
    """Self-attention among queries, cross-attention to the image, then a feed-forward network.

    Args:
        dim: D.
        num_heads: attention heads; divides D.
        dim_feedforward: hidden width of the feed-forward network.
        dropout: probability.
        pre_norm: see ``ResidualLayer``.
    """

    def __init__(self, *, dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool):
        super().__init__(dim=dim, dim_feedforward=dim_feedforward, dropout=dropout, pre_norm=pre_norm)
        self.self_attn = multi_head_attention(dim, num_heads, dropout)
        self.multihead_attn = multi_head_attention(dim, num_heads, dropout)  # cross-attention
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, query_position: Tensor, memory: Tensor, memory_position: Tensor) -> Tensor:
        """Refine queries.

        Args:
            queries: (B,Q,D).
            query_position: (1,Q,D), added to q and k of self-attention and to q of cross-attention.
            memory: (B, cells, D), the image.
            memory_position: (1, cells, D), added to k of cross-attention.

        Returns:
            (B,Q,D).
        """

        def self_attention(x: Tensor) -> Tensor:
            return attend(self.self_attn, x + query_position, x + query_position, x)

        def cross_attention(x: Tensor) -> Tensor:
            return attend(self.multihead_attn, x + query_position, memory + memory_position, memory)

        queries = self.residual(queries, self.norm1, self_attention)
        queries = self.residual(queries, self.norm2, cross_attention)
        return self.residual(queries, self.norm3, self.feed_forward)


class TransformerDecoder(nn.Module):
    """A stack of decoder layers whose outputs all go through one shared LayerNorm.

    Args:
        num_layers: L when every layer is supervised.
        dim: D.
        num_heads: attention heads; divides D.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability.
        pre_norm: see ``ResidualLayer``.

    Source: DETR (arXiv 2005.12872), section 3.2; MaskFormer, section 3.3.
    """

    def __init__(
        self, *, num_layers: int, dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(
                dim=dim, num_heads=num_heads, dim_feedforward=dim_feedforward, dropout=dropout, pre_norm=pre_norm
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, query_position: Tensor, memory: Tensor, memory_position: Tensor, *, every_layer: bool) -> Tensor:
        """Decode queries that start at zero.

        Args:
            query_position: (1,Q,D), the learned queries.
            memory: (B, cells, D), the image.
            memory_position: (1, cells, D).
            every_layer: return all layers' outputs instead of the last one's.

        Returns:
            (L,B,Q,D); L is 1 without ``every_layer``.
        """
        queries = query_position.new_zeros(memory.shape[0], *query_position.shape[1:])
        outputs = []
        for layer in self.layers:
            queries = layer(queries, query_position, memory, memory_position)
            outputs.append(queries)
        return self.norm(torch.stack(outputs if every_layer else outputs[-1:]))
