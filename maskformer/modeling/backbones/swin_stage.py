"""One stage of Swin: blocks of windowed attention at one resolution, and the merging that leads to the next.

A feature is (B, rows, columns, channels) here. Names of sub-modules are those of the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from .window_attention import ShiftMask, WindowAttention, join_windows, partition_windows


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
        """Refine (B, rows, columns, channels); the mask is the ``ShiftMask`` of the padded grid."""
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
        self.mask = ShiftMask(window_size, window_size // 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Refine (B, rows, columns, channels); returns the refined feature, and the next stage's input made of it."""
        mask = self.mask(*((length + self.window_size - 1) // self.window_size for length in x.shape[1:3]))
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
