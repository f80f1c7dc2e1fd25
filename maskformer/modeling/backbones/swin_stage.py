"""One stage of Swin: blocks of attention in windows at one resolution, and the merging that leads to the next.

A feature is (B, rows, columns, channels) here; N is the cells of one square window, M its side: N = M * M. Names of
sub-modules are those of the released weights.

A shifted block sees the grid rolled by half a window, so that a window in the last row or column of windows holds cells
from both borders of the image. Those did not meet before the roll and must not meet now: ``shift_mask``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

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


def shift_mask(num_rows: int, num_columns: int, window_size: int, shift: int, device: torch.device | None) -> Tensor:
    """The attention mask of shifted windows, which keeps cells of opposite borders apart.

    Args:
        num_rows: of windows.
        num_columns: likewise.
        window_size: M.
        shift: cells that the grid was rolled by, up and left; 0..M-1.
        device: of the mask.

    Returns:
        (windows,N,N) bool, in the order of ``partition_windows``.

    Source: Swin Transformer (arXiv 2103.14030), section 3.2, "Efficient batch computation for shifted configuration".
    """
    # Of a window at the end of an axis, the last cells were rolled there from the axis's beginning.
    is_rolled = torch.arange(window_size, device=device) >= window_size - shift
    rows = is_rolled[:, None].expand(window_size, window_size).flatten()  # Tensor.repeat is not on every device
    columns = is_rolled[None, :].expand(window_size, window_size).flatten()
    is_last_row = torch.arange(num_rows, device=device) == num_rows - 1
    is_last_column = torch.arange(num_columns, device=device) == num_columns - 1
    of_rows = is_last_row[:, None, None, None] & (rows[:, None] != rows)
    return (of_rows | (is_last_column[:, None, None] & (columns[:, None] != columns))).flatten(0, 1)


class SwinBlock(nn.Module):
    """Windowed attention, then a two-layer network, each a residual on a normalised input.

    Args:
        dim: channels.
        shift: cells by which the grid is rolled before it is cut into windows; 0: not at all.
        window_size: M, cells along a window's side.
        mlp_ratio: hidden width of the network over ``dim``.
        stochastic_depth: probability, for each image, of leaving a residual out during training.
        dropout: probability, on the outputs of both and inside the network.
        attention: further arguments of ``WindowAttention``.

    Source: Swin Transformer (arXiv 2103.14030), section 3.2, equation 3.
    """

    def __init__(
        self,
        dim: int,
        *,
        shift: int,
        window_size: int,
        mlp_ratio: float,
        stochastic_depth: float,
        dropout: float,
        **attention: Any,
    ):
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size=window_size, dropout=dropout, **attention)
        self.drop_path = StochasticDepth(stochastic_depth, mode="row")
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Refine (B, rows, columns, channels); the mask is ``shift_mask`` of the padded grid."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        x = pad_to_multiple(x, self.window_size)
        padded_rows, padded_columns = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(partition_windows(x, self.window_size), mask if self.shift else None)
        x = join_windows(windows, self.window_size, padded_rows, padded_columns)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :rows, :columns]


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class PatchMerging(nn.Module):
    """Half the rows and columns, twice the channels: four neighbours become one cell.

    Args:
        dim: channels of the input.

    Source: Swin Transformer, section 3.1, "patch merging".
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, columns, channels) -> (B, rows/2, columns/2, 2*channels), both rounded up."""
        x = pad_to_multiple(x, 2)
        batch, rows, columns, channels = x.shape
        quads = x.reshape(batch, rows // 2, 2, columns // 2, 2, channels)
        # The released weights expect upper left, lower left, upper right, lower right.
        return self.reduction(self.norm(quads.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class SwinStage(nn.Module):
    """Blocks at one resolution, every second one shifted by half a window, and the step to the next resolution.

    Args:
        dim: channels.
        stochastic_depths: probability of each block.
        window_size: M.
        merge: end in a ``PatchMerging``.
        use_checkpoint: compute activations of a block again in the backward pass instead of keeping them.
        block: further arguments of ``SwinBlock``.
    """

    def __init__(
        self,
        dim: int,
        *,
        stochastic_depths: Sequence[float],
        window_size: int,
        merge: bool,
        use_checkpoint: bool,
        **block: Any,
    ):
        super().__init__()
        self.window_size = window_size
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                shift=window_size // 2 if index % 2 else 0,
                window_size=window_size,
                stochastic_depth=probability,
                **block,
            )
            for index, probability in enumerate(stochastic_depths)
        )
        self.downsample = PatchMerging(dim) if merge else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Refine (B, rows, columns, channels); returns the refined feature, and the next stage's input made of it."""
        size = self.window_size
        num_rows, num_columns = ((length + size - 1) // size for length in x.shape[1:3])
        mask = shift_mask(num_rows, num_columns, size, size // 2, x.device)
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x, self.downsample(x)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, rows, columns, channels) below and to the right with zeros to a multiple, in cells."""
    rows, columns = x.shape[1:3]
    # As multiple * whole - length, which torch.export sees to be divisible; -length % multiple it does not.
    below, right = (multiple * ((length + multiple - 1) // multiple) - length for length in (rows, columns))
    return F.pad(x, (0, 0, 0, right, 0, below))
