"""Linear interpolation along one axis, as each fine place and its two coarse ones."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray


class Interpolation(NamedTuple):
    """From a coarse grid to a fine one.

    Attributes:
        low: (fine,) int64, the coarse place before each fine one; the other is next to it, where there is one.
        low_weight: (fine,) float32, of the former.
        high_weight: (fine,) float32, of the latter; 0 where there is none.
        first: (coarse + 1,) int64, where in ``low`` each coarse place is first met; the last is the length of the fine.
    """

    low: Array
    low_weight: Array
    high_weight: Array
    first: Array


def interpolation_matrix(length: int, new_length: int, like: Tensor) -> Tensor:
    """(new_length, length), type and device of ``like``: along one axis what ``F.interpolate`` does, bilinear."""
    identity = torch.eye(length, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None], new_length, mode="linear", align_corners=False)[0].mT.contiguous()


@functools.lru_cache(maxsize=16)
def plan_interpolation(length: int, new_length: int) -> Interpolation:
    """What ``interpolation_matrix`` holds: one value or two in each row.

    Args:
        length: coarse places.
        new_length: fine places.
    """
    with torch.inference_mode(False), torch.no_grad():  # kept between calls, whatever mode they are in
        weights = interpolation_matrix(length, new_length, torch.zeros(1))
        low = (weights != 0).byte().argmax(1)
        beyond = F.pad(weights, (0, 1))  # the last place has no next one
        low_weight, high_weight = (beyond.gather(1, (low + step)[:, None])[:, 0] for step in (0, 1))
        first = torch.searchsorted(low, torch.arange(length + 1))
    return Interpolation(*(tensor.numpy() for tensor in (low, low_weight, high_weight, first)))
