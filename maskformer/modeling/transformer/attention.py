"""What every transformer layer is made of: residual blocks, multi-head attention and the feed-forward network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from .dropout import Dropout, draws_pieces, drop


class ResidualLayer(nn.Module):
    """A transformer layer: residual blocks, each normalised before (pre-norm) or after (post-norm).

    Args:
        dim: D, the width of the layer.
        dim_feedforward: hidden width of the feed-forward network.
        dropout: probability, on every block's output and inside the feed-forward network.
        pre_norm: normalise a block's input instead of its sum with the residual.
    """

    def __init__(self, *, dim: int, dim_feedforward: int, dropout: float, pre_norm: bool):
        super().__init__()
        # linear1, linear2, norm1, ... are the names of the released weights.
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        """Add a block's output to its input; shapes stay."""
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Two linear maps with a ReLU between, on the last axis (D)."""
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


def multi_head_attention(dim: int, num_heads: int, dropout: float) -> nn.MultiheadAttention:
    """Multi-head attention over (B, tokens, D): the parameters, under the names of the released weights."""
    return nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)


def attend(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention by whichever of PyTorch's kernels is fastest on the device.

    The module's own forward would do the same with more copies, and with views of non-contiguous tensors, which some
    accelerators refuse.

    Args:
        attention: the projections.
        query: (B, targets, D).
        key: (B, sources, D).
        value: (B, sources, D).

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
    if dropout > 0 and draws_pieces(query_heads):
        scores = (query_heads * query_heads.shape[-1] ** -0.5) @ key_heads.mT
        attended = drop(scores.softmax(-1), dropout) @ value_heads
    else:
        attended = F.scaled_dot_product_attention(query_heads, key_heads, value_heads, dropout_p=dropout)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def initialise_matrices(module: nn.Module) -> None:
    """Draw every matrix of a transformer from Xavier's uniform distribution; vectors keep their defaults."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
