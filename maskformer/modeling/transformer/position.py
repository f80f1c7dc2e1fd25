"""Where a feature is: the two-dimensional sine position embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TEMPERATURE = 10000.0
_EPSILON = 1e-6


def sine_position_embedding(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Embed each cell of a grid by sines and cosines of its row and its column.

    Rows and columns count from 1 and are scaled so that the last one is 2 pi.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        dim: D, a multiple of 4; the first half tells the row, the second the column.
        device: where to compute it.

    Returns:
        (D, height, width) float32. The released models add it in float32 whatever the precision of the features.

    Source: DETR (arXiv 2005.12872), appendix A.4; scaling as in the released weights.
    """
    rows = _axis_embedding(height, dim // 2, device)[:, :, None].expand(-1, height, width)
    columns = _axis_embedding(width, dim // 2, device)[:, None, :].expand(-1, height, width)
    return torch.cat([rows, columns])


def _axis_embedding(length: int, dim: int, device: torch.device | str) -> Tensor:
    """(dim, length): sine on even channels, cosine of the same frequency on odd ones."""
    coordinates = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    coordinates = coordinates / (coordinates[-1:] + _EPSILON) * (2 * math.pi)
    channels = torch.arange(dim, dtype=torch.float32, device=device)
    wavelengths = _TEMPERATURE ** (2 * torch.div(channels, 2, rounding_mode="floor") / dim)
    angles = coordinates[None, :] / wavelengths[:, None]
    embedding = torch.empty_like(angles)
    embedding[0::2] = angles[0::2].sin()
    embedding[1::2] = angles[1::2].cos()
    return embedding
