"""Matching and losses are computed in float32 (or float64), whatever autocast and the network's precision say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def without_autocast(like: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Switch autocast off on a tensor's device; gives a function that casts half precision up to float32."""
    with torch.autocast(like.device.type, enabled=False):
        yield _at_least_float32


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
