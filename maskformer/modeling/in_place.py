"""Layers over their own input, in parts: a large image's feature needs no second one beside it at inference.

Values are those of the usual layers. Whoever calls these owns the feature, and needs no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A band is still in the cache when it is added; larger ones also leave holes in the heap that other features do not
# fit in: with 2^21 the peak of 2048 x 2731 was 70 MB higher.
_BAND_VALUES = 2**19
_BAND_VALUES_ELSEWHERE = 2**24  # on accelerators each operator costs a launch
_LARGE = 2**24  # values; below, parts cost more time than their memory is worth
_NORM_PARTS = 8


def is_worth_in_place(x: Tensor) -> bool:
    """Whether a feature (B, channels, rows, columns) is large and no gradient is needed.

    Not under autocast either: there, what a layer gives does not always fit into what it was given.
    """
    return x.numel() > _LARGE and not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)


def row_bands(x: Tensor) -> Iterator[slice]:
    """Yields the rows of a feature (B, channels, rows, columns) in bands from the top."""
    batch, channels, num_rows, columns = x.shape
    band_values = _BAND_VALUES if x.device.type == "cpu" else _BAND_VALUES_ELSEWHERE
    step = max(band_values // max(batch * channels * columns, 1), 1)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def convolve_in_place(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Write a convolution's output over its input.

    Args:
        x: (B, channels, rows, columns).
        convolution: 1 x 1, or 3 x 3 with padding 1; as many channels out as in, stride 1. Only its weight and bias are
            used, neither its norm nor its activation.

    Returns:
        ``x``.
    """
    halo = convolution.kernel_size[0] // 2
    above = outside = torch.zeros_like(x[:, :, :halo])
    for rows in row_bands(x):
        below = x[:, :, rows.stop : rows.stop + halo] if rows.stop < x.shape[2] else outside
        window = torch.cat([above, x[:, :, rows], below], dim=2)
        above = x[:, :, rows.stop - halo : rows.stop].clone()  # the next band reads it after it was written over
        x[:, :, rows] = F.conv2d(window, convolution.weight, convolution.bias, padding=(0, halo))
    return x


def normalise_in_place(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Write a group norm's output over its input (B, channels, rows, columns), some groups at a time."""
    groups = -(-norm.num_groups // _NORM_PARTS)
    size = groups * (norm.num_channels // norm.num_groups)
    for part, weight, bias in zip(x.split(size, dim=1), norm.weight.split(size), norm.bias.split(size)):
        num_groups = part.shape[1] * norm.num_groups // norm.num_channels
        part.copy_(F.group_norm(in_row_order(part), num_groups, weight, bias, norm.eps))
    return x


def in_row_order(x: Tensor) -> Tensor:
    """A feature (B, channels, rows, columns) that norms can view as they like; on a CPU, which copes, as it is.

    PyTorch's group norm for devices that have none of their own views its input, and nothing but contiguous tensors can
    be viewed so: neither features in channels-last order, as transformers give, nor slices of a batch's channels.
    """
    return x if x.device.type == "cpu" else x.contiguous()
