"""Attention inside square windows of a feature, with a learned bias for each offset between two cells.

N is the cells of one window, M its side: N = M * M.

A shifted block sees the grid rolled by half a window, so that a window at the end of an axis holds cells from both
borders of the image. Those did not meet before the roll and must not meet now: ``find_strangers`` says which they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STRANGER_LOGIT = -100.0  # added, as the released weights were trained with; finite also in half precision


@dataclass(frozen=True)
class Strangers:
    """Which cells of which windows of a rolled grid must not attend to each other.

    Few windows have any, those at the end of an axis, so that only they need a mask of their own.

    Attributes:
        inner: (inner windows,) int64, the windows without strangers.
        border: (border windows,) int64, the others.
        order: (windows,) int64, where each window is in ``inner`` followed by ``border``.
        pairs: (border windows,N,N) bool, the pairs of cells of each border window.
    """

    inner: Tensor
    border: Tensor
    order: Tensor
    pairs: Tensor


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

    def forward(self, windows: Tensor, strangers: Strangers | None = None) -> Tensor:
        """Let the cells of each window attend to each other.

        Args:
            windows: (B, windows, N, channels).
            strangers: cells that must not attend to each other; None: there are none.

        Returns:
            (B, windows, N, channels).
        """
        heads = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self._bias().to(heads.dtype)
        attended = self._attend(heads, bias) if strangers is None else self._attend_apart(heads, bias, strangers)
        return self.proj_drop(self.proj(attended.transpose(2, 3).flatten(3)))

    def _attend_apart(self, heads: Tensor, bias: Tensor, strangers: Strangers) -> Tensor:
        """As ``_attend``, with a mask on the windows at the border."""
        apart = torch.where(strangers.pairs[:, None], bias + _STRANGER_LOGIT, bias)
        border = self._attend(heads.index_select(2, strangers.border), apart)
        if not len(strangers.inner):
            return border
        inner = self._attend(heads.index_select(2, strangers.inner), bias)
        return torch.cat([inner, border], dim=1).index_select(1, strangers.order)

    def _attend(self, heads: Tensor, bias: Tensor) -> Tensor:
        """Attend inside windows.

        Args:
            heads: (3, B, windows, heads, N, width), queries, keys and values.
            bias: (heads,N,N) for every window, or (windows,heads,N,N).

        Returns:
            (B, windows, heads, N, width).
        """
        # The kernels take (batch, heads, N, width): the axis that shares its bias becomes the batch.
        of_each_window = bias.dim() == 4
        query, key, value = (heads.flatten(2, 3) if of_each_window else heads.flatten(1, 2)).unbind()
        bias = bias.flatten(0, 1) if of_each_window else bias
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, bias[None], dropout, scale=self.scale)
        return attended.reshape(heads.shape[1:])

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


def find_strangers(rows: int, columns: int, window_size: int, shift: int, device: torch.device | str) -> Strangers:
    """Which cells come from opposite borders of a grid that was rolled up and left.

    Args:
        rows: of the grid, a multiple of M.
        columns: likewise.
        window_size: M.
        shift: cells that the grid was rolled by, 0..M-1.
        device: where the answer is needed; it is found on the CPU, for the number of windows is read.

    Returns:
        Windows counted as ``partition_windows`` orders them.
    """
    # Whether the roll brought a cell from the beginning of the rows, of the columns, to their end.
    row_moved = (torch.arange(rows, device="cpu") >= rows - shift)[:, None].expand(rows, columns)
    column_moved = (torch.arange(columns, device="cpu") >= columns - shift)[None, :].expand(rows, columns)
    moved = partition_windows(torch.stack([row_moved, column_moved], dim=-1)[None], window_size)[0]
    has_strangers = (moved != moved[:, :1]).any(-1).any(-1)
    inner, border = (~has_strangers).nonzero()[:, 0], has_strangers.nonzero()[:, 0]
    of_border = moved[border]
    pairs = (of_border[:, :, None] != of_border[:, None, :]).any(-1)
    order = torch.cat([inner, border]).argsort()
    return Strangers(*(x.to(device) for x in (inner, border, order, pairs)))
