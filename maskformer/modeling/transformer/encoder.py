"""Self-attention over the cells of one feature map."""

from __future__ import annotations

from torch import Tensor, nn

from .attention import ResidualLayer, attend, multi_head_attention


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
