"""The transformer of DETR: queries look at each other and at the image, layer by layer; an encoder before it if wanted.

Sub-modules are named as in the released weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """What has residual blocks, each normalised before (pre-norm) or after (post-norm).

    Args:
        dropout: probability, on every block's output.
        pre_norm: normalise a block's input instead of its sum with the residual.
    """

    def __init__(self, *, dropout: float, pre_norm: bool):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        """Add a block's output to its input; shapes stay."""
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))


class ResidualLayer(Residual):
    """A transformer layer: residual blocks, the last of which is a feed-forward network.

    Args:
        dim: D, the width of the layer.
        dim_feedforward: hidden width of the feed-forward network.
        dropout: probability, on every block's output and inside the feed-forward network.
        pre_norm: see ``Residual``.
    """

    def __init__(self, *, dim: int, dim_feedforward: int, dropout: float, pre_norm: bool):
        super().__init__(dropout=dropout, pre_norm=pre_norm)
        # linear1, linear2, norm1, ... are the names of the released weights.
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Two linear maps with a ReLU between, on the last axis (D)."""
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


def multi_head_attention(dim: int, num_heads: int, dropout: float) -> nn.MultiheadAttention:
    """Multi-head attention over (B, tokens, D): the parameters, under the names of the released weights."""
    return nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)


def attend(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Multi-head attention by whichever of PyTorch's kernels is fastest on the device.

    The module's own forward would do the same with more copies, and with views of non-contiguous tensors, which some
    accelerators refuse.

    Args:
        attention: the projections.
        query: (B, targets, D).
        key: (B, sources, D).
        value: (B, sources, D).
        allowed: (B, targets, sources) bool, what each target may attend to, at least one source; None: everything.

    Returns:
        (B, targets, D).

    Source: Attention Is All You Need (arXiv 1706.03762), section 3.2.2.
    """
    projections = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3))
    query_heads, key_heads, value_heads = (
        F.linear(tokens, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for tokens, (weight, bias) in zip((query, key, value), projections)
    )
    dropout = attention.dropout if attention.training else 0.0
    mask = None if allowed is None else allowed[:, None]  # the same for all heads
    attended = F.scaled_dot_product_attention(query_heads, key_heads, value_heads, attn_mask=mask, dropout_p=dropout)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


class TransformerEncoderLayer(ResidualLayer):
    """Self-attention, then a feed-forward network.

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
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """Refine features (B, cells, D); the position (1, cells, D) is added to queries and keys, not to values."""

        def self_attention(x: Tensor) -> Tensor:
            return attend(self.self_attn, x + position, x + position, x)

        features = self.residual(features, self.norm1, self_attention)
        return self.residual(features, self.norm2, self.feed_forward)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers, closed by a LayerNorm only with pre-norm (as in the released models).

    Args:
        num_layers: may be 0.
        dim: D.
        num_heads: attention heads; divides D.
        dim_feedforward: hidden width of the feed-forward networks.
        dropout: probability.
        pre_norm: see ``ResidualLayer``.

    Source: DETR (arXiv 2005.12872), section 3.2.
    """

    def __init__(
        self, *, num_layers: int, dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                dim=dim, num_heads=num_heads, dim_feedforward=dim_feedforward, dropout=dropout, pre_norm=pre_norm
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

    def forward(self, features: Tensor, position: Tensor) -> Tensor:
        """Refine features (B, cells, D), with position (1, cells, D)."""
        for layer in self.layers:
            features = layer(features, position)
        return self.norm(features)


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


def initialise_matrices(module: nn.Module) -> None:
    """Draw every matrix of a transformer from Xavier's uniform distribution; vectors keep their defaults."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def layer_options(cfg: CfgNode) -> dict[str, Any]:
    """Keyword arguments that every transformer layer takes: heads, feed-forward width, dropout, pre-norm."""
    node = cfg.MODEL.MASK_FORMER
    return {
        "num_heads": node.NHEADS,
        "dim_feedforward": node.DIM_FEEDFORWARD,
        "dropout": node.DROPOUT,
        "pre_norm": node.PRE_NORM,
    }
