"""Multi-scale deformable attention: each token looks at a few places of each feature map, and says itself where.

T tokens ask; ``cells`` are those of all maps, map by map, and ``sizes`` the (rows, columns) of each. M heads have
D / M channels each. There is nothing to compile or install: PyTorch samples, on a CPU compiled loops do.

Source: Deformable DETR (arXiv 2010.04159), section 4.1, equation 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from maskformer.kernels import find_kernels, for_each

Sizes = Sequence[tuple[int, int]]


class MultiScaleDeformableAttention(nn.Module):
    """Each head of a token takes a weighted sum of values at places around the token, on every map.

    Args:
        dim: D.
        num_heads: M; divides D.
        num_levels: feature maps.
        num_points: places a head looks at on each map.
    """

    def __init__(self, dim: int, *, num_heads: int, num_levels: int, num_points: int = 4):
        super().__init__()
        self._shape = num_heads, num_levels, num_points
        places = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, 2 * places)
        self.attention_weights = nn.Linear(dim, places)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Begin with equal weights, and each head looking into a direction of its own, 1, 2, ... cells away."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        num_heads, num_levels, num_points = self._shape
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # (M,2), onto a square
        offsets = directions[:, None, None] * torch.arange(1, num_points + 1)[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, num_levels, -1, -1).flatten())

    def forward(self, queries: Tensor, references: Tensor, cells: Tensor, sizes: Sizes) -> Tensor:
        """Attend.

        Args:
            queries: (B,T,D), what decides where to look and what counts.
            references: (T,2), x and y of each token, 0..1 of a map's width and height.
            cells: (B, cells, D).
            sizes: of the maps.

        Returns:
            (B,T,D).
        """
        num_heads, num_levels, num_points = self._shape
        values = self.value_proj(cells).unflatten(-1, (num_heads, -1))
        offsets = self.sampling_offsets(queries).unflatten(-1, (num_heads, num_levels, num_points, 2))
        weights = self.attention_weights(queries).unflatten(-1, (num_heads, num_levels * num_points)).softmax(-1)
        # Filled on the device: a tensor of numbers would be copied to it, and waited for, in each layer.
        lengths = torch.stack([offsets.new_full((), side) for rows, columns in sizes for side in (columns, rows)])
        locations = references[:, None, None, None] + offsets / lengths.view(-1, 1, 2)
        return self.output_proj(sample_values(values, sizes, locations, weights.unflatten(-1, (num_levels, -1))))


def reference_points(sizes: Sizes, like: Tensor) -> Tensor:
    """(cells,2): x and y of the middle of every cell of every map, 0..1; type and device of ``like``."""
    grids = []
    for rows, columns in sizes:
        y = (torch.arange(rows, device=like.device).to(like.dtype) + 0.5) / rows
        x = (torch.arange(columns, device=like.device).to(like.dtype) + 0.5) / columns
        grids.append(torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1).flatten(0, 1))
    return torch.cat(grids)


def sample_values(values: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of values at places between cells: bilinear, 0 beyond the edge of a map.

    Args:
        values: (B, cells, M, D / M).
        sizes: of the maps.
        locations: (B,T,M,maps,points,2), x and y, 0..1 of a map's width and height where they are on it.
        weights: (B,T,M,maps,points).

    Returns:
        (B,T,D).
    """
    if not _is_traced() and find_kernels(values.detach(), locations.detach(), weights.detach()):
        return _CompiledSampling.apply(values, locations, weights, sizes)
    num_heads = values.shape[2]
    maps = values.split([rows * columns for rows, columns in sizes], dim=1)
    grids, head_weights = ((x.transpose(1, 2).flatten(0, 1)) for x in (2 * locations - 1, weights))
    total: Tensor | float = 0.0
    for level, size in enumerate(sizes):
        level_map = maps[level].permute(0, 2, 3, 1).flatten(0, 1).contiguous()  # a view, if there is one image
        level_map = level_map.unflatten(2, size)  # (B M, D / M, rows, columns)
        sampled = F.grid_sample(level_map, grids[:, :, level], align_corners=False)  # (B M, D / M, T, points)
        total = total + (sampled * head_weights[:, None, :, level]).sum(-1)
    assert isinstance(total, Tensor)
    return total.unflatten(0, (-1, num_heads)).permute(0, 3, 1, 2).flatten(2)


def _is_traced() -> bool:
    """Whether somebody writes down what is computed, to compute it elsewhere: then with PyTorch's operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class _CompiledSampling(torch.autograd.Function):
    """``sample_values``, head by head; nothing is kept for its gradient but what comes in."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, locations: Tensor, weights: Tensor, sizes: Sizes) -> Tensor:
        kernels, arrays = _arrays(values, locations, weights)
        ctx.save_for_backward(values, locations, weights)
        ctx.sizes = sizes
        batch, _, num_heads, head_dim = values.shape
        sampled = values.new_empty(batch, locations.shape[1], num_heads, head_dim)
        output, sizes_array = sampled.numpy(), torch.tensor(sizes).numpy()

        def sample(piece: int) -> None:
            image, head = divmod(piece, num_heads)
            kernels.sample_values(image, head, arrays[0], sizes_array, arrays[1], arrays[2], output)

        for_each(sample, range(batch * num_heads), values.device)
        return sampled.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        saved = ctx.saved_tensors  # once: what computes activations anew gives them once
        kernels, arrays = _arrays(*saved)
        batch, _, num_heads, _ = saved[0].shape
        gradients = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in saved]
        incoming = gradient.unflatten(-1, (num_heads, -1)).contiguous().numpy()
        outputs, sizes_array = [x.numpy() for x in gradients], torch.tensor(ctx.sizes).numpy()

        def differentiate(piece: int) -> None:
            image, head = divmod(piece, num_heads)
            inputs = arrays[0], sizes_array, arrays[1], arrays[2]
            kernels.differentiate_sampled_values(image, head, *inputs, incoming, *outputs)

        for_each(differentiate, range(batch * num_heads), gradient.device)
        return gradients[0], gradients[1], gradients[2], None


def _arrays(*tensors: Tensor) -> tuple[Any, list[Any]]:
    """The module of compiled loops, and tensors as contiguous arrays."""
    return find_kernels(*(x.detach() for x in tensors)), [x.detach().contiguous().numpy() for x in tensors]
