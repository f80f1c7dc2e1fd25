"""Attention inside square windows of a feature, with a learned bias for each offset between two cells.

N is the cells of one window, M its side: N = M * M.

A shifted block sees the grid rolled by half a window, so that a window at the end of an axis holds cells from both
borders of the image. Those did not meet before the roll and must not meet now: ``find_strangers`` says which they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STRANGER_LOGIT = -100.0  # added, as the released weights were trained with; finite also in half precision


class WindowAttention(nn.Module):
    """Multi-head self-attention among the cells of each window.

    Args:
        dim: channels.
        window_size: M.
        num_heads: attention heads; divides ``dim``.
        qkv_bias: add a bias to queries, keys and values.
        qk_scale: the factor on inner products; None for one over the root of a head's width.
        attention_dropout: probability, on attention weights.
        dropout: probability, on the output.

    Source: Swin Transformer (arXiv 2103.14030), section 3.2, equation 4.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        *,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale
        self.attention_dropout = attention_dropout
        # Named as in the released weights, which hold the index too.
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, windows: Tensor, strangers: Tensor | None = None) -> Tensor:
        """Let the cells of each window attend to each other.

        Args:
            windows: (B, windows, N, channels).
            strangers: (windows,N,N) bool, pairs of cells that must not attend to each other; None: there are none.

        Returns:
            (B, windows, N, channels).
        """
        batch, num_windows = windows.shape[:2]
        heads = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self._bias().to(heads.dtype)
        if strangers is None:
            heads = heads.flatten(1, 2)  # (3, B * windows, heads, N, width): one bias for every window
        else:
            heads = heads.flatten(2, 3)  # (3, B, windows * heads, N, width): one bias for every image
            bias = torch.where(strangers[:, None], bias + _STRANGER_LOGIT, bias).flatten(0, 1)
        query, key, value = heads.unbind()
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, bias[None], dropout, scale=self.scale)
        attended = attended.reshape(batch, num_windows, self.num_heads, *attended.shape[-2:])
        return self.proj_drop(self.proj(attended.transpose(2, 3).flatten(3)))

    def _bias(self) -> Tensor:
        """(heads,N,N): the learned bias of each pair; gathered anew, which costs about 1 percent of the attention."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


def relative_position_index(window_size: int) -> Tensor:
    """The row of the bias table for each pair of cells.

    Args:
        window_size: M.

    Returns:
        (N,N) int64, 0..(2M-1)^2-1; pairs with the same offset in rows and columns share a row of the table.
    """
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(window_size)] * 2, indexing="ij"))
    row_offset = rows[:, None] - rows[None, :] + window_size - 1
    column_offset = columns[:, None] - columns[None, :] + window_size - 1
    return row_offset * (2 * window_size - 1) + column_offset


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut (B, rows, columns, channels), both multiples of M, into (B, windows, N, channels), row by row."""
    tiles = x.unflatten(2, (-1, window_size)).unflatten(1, (-1, window_size))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def join_windows(windows: Tensor, window_size: int, rows: int, columns: int) -> Tensor:
    """Undo ``partition_windows``: (B, windows, N, channels) -> (B, rows, columns, channels)."""
    tiles = windows.unflatten(2, (window_size, window_size))
    tiles = tiles.unflatten(1, (rows // window_size, columns // window_size))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def find_strangers(rows: int, columns: int, window_size: int, shift: int, device: torch.device | str) -> Tensor:
    """Which cells of a window come from opposite borders of a grid that was rolled up and left.

    Args:
        rows: of the grid, a multiple of M.
        columns: likewise.
        window_size: M.
        shift: cells that the grid was rolled by, 1..M-1.
        device: where the answer is needed.

    Returns:
        (windows,N,N) bool, windows as ``partition_windows`` orders them.
    """
    row_origin = _origin(rows, shift, device)[:, None].expand(rows, columns)
    column_origin = _origin(columns, shift, device)[None, :].expand(rows, columns)
    origin = torch.stack([row_origin, column_origin], dim=-1)
    cells = partition_windows(origin[None], window_size)[0]
    return (cells[:, :, None] != cells[:, None, :]).any(-1)


def _origin(length: int, shift: int, device: torch.device | str) -> Tensor:
    """(length,) bool: the cells of an axis that the roll brought from its beginning to its end."""
    return torch.arange(length, device=device) >= length - shift
