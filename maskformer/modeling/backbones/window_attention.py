"""Attention inside square windows of a feature, with a learned bias for each offset between two cells.

N is the cells of one window, M its side: N = M * M.

A shifted block sees the grid rolled by half a window, so that a window in the last row or column of windows holds cells
from both borders of the image. Those did not meet before the roll and must not meet now: the attention mask of shifted
windows, ``ShiftMask``, keeps them apart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MASKED_LOGIT = -100.0  # added, as the released weights were trained with; finite also in half precision


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

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let the cells of each window attend to each other.

        Args:
            windows: (B, windows, N, channels).
            mask: (windows,N,N) bool, pairs of cells that must not attend to each other; None: there are none.

        Returns:
            (B, windows, N, channels).
        """
        heads = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self._bias().to(heads.dtype)
        if mask is None:  # the kernels take (batch, heads, N, width): the axis that shares its bias is the batch
            query, key, value = heads.flatten(1, 2).unbind()
        else:
            query, key, value = heads.flatten(2, 3).unbind()
            bias = torch.where(mask[:, None], bias + _MASKED_LOGIT, bias).flatten(0, 1)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, bias[None], dropout, scale=self.scale)
        return self.proj_drop(self.proj(attended.reshape(heads.shape[1:]).transpose(2, 3).flatten(3)))

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
    batch, rows, columns, channels = x.shape
    num_rows, num_columns = rows // window_size, columns // window_size
    tiles = x.reshape(batch, num_rows, window_size, num_columns, window_size, channels).transpose(2, 3)
    return tiles.reshape(batch, num_rows * num_columns, window_size**2, channels)


def join_windows(windows: Tensor, window_size: int, rows: int, columns: int) -> Tensor:
    """Undo ``partition_windows``: (B, windows, N, channels) -> (B, rows, columns, channels)."""
    batch, _, _, channels = windows.shape
    num_rows, num_columns = rows // window_size, columns // window_size
    tiles = windows.reshape(batch, num_rows, num_columns, window_size, window_size, channels).transpose(2, 3)
    return tiles.reshape(batch, rows, columns, channels)


class ShiftMask(nn.Module):
    """The attention mask of shifted windows, for a grid of any size.

    Args:
        window_size: M.
        shift: cells that the grid was rolled by, up and left; 0..M-1.

    Source: Swin Transformer (arXiv 2103.14030), section 3.2, "Efficient batch computation for shifted configuration".
    """

    rows_differ: Tensor
    columns_differ: Tensor

    def __init__(self, window_size: int, shift: int):
        super().__init__()
        # Of a window at the end of an axis, the last cells were rolled there from the axis's beginning.
        is_rolled = torch.arange(window_size) >= window_size - shift
        rows = is_rolled[:, None].expand(window_size, window_size).flatten()
        columns = is_rolled[None, :].expand(window_size, window_size).flatten()
        self.register_buffer("rows_differ", rows[:, None] != rows[None, :], persistent=False)
        self.register_buffer("columns_differ", columns[:, None] != columns[None, :], persistent=False)

    def forward(self, num_rows: int, num_columns: int) -> Tensor:
        """(windows,N,N) bool of a grid of num_rows x num_columns windows, in the order of ``partition_windows``."""
        device = self.rows_differ.device
        is_last_row = torch.arange(num_rows, device=device) == num_rows - 1
        is_last_column = torch.arange(num_columns, device=device) == num_columns - 1
        of_rows = is_last_row[:, None, None, None] & self.rows_differ
        return (of_rows | (is_last_column[:, None, None] & self.columns_differ)).flatten(0, 1)
