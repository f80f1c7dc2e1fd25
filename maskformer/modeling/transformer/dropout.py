"""Dropout that needs a quarter of a random number for each value on a CPU, where they are drawn one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16  # of the 16 bits that decide about a value
_PIECES = 4  # of 16 bits in a random number


class Dropout(nn.Dropout):
    """``nn.Dropout`` that draws as ``drop`` does."""

    def forward(self, x: Tensor) -> Tensor:
        """While training, set each value of any shape to 0 with probability ``p`` and scale the others."""
        return drop(x, self.p) if self.training else x


def drop(x: Tensor, probability: float) -> Tensor:
    """Set values to 0, independently of each other, and scale the others so that each keeps its expected value.

    On a CPU in float32 and float64 the probability is rounded to a multiple of 2^-16, and the scale is exact for the
    rounded one. Elsewhere, and where that would be 0 or 1, this is PyTorch's dropout. Both draw from PyTorch's
    generator.

    Args:
        x: any shape.
        probability: of a 0.

    Returns:
        A tensor of the same shape.

    Source: arXiv 1207.0580.
    """
    num_dropped = round(probability * _LEVELS)
    if not (0 < num_dropped < _LEVELS and draws_pieces(x)):
        return F.dropout(x, probability)
    words = torch.empty(-(-x.numel() // _PIECES), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    pieces = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = pieces >= num_dropped + torch.iinfo(torch.int16).min
    return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - num_dropped))


def draws_pieces(x: Tensor) -> bool:
    """Whether ``drop`` draws by itself for a tensor like this."""
    is_float = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and is_float and not torch.is_autocast_enabled("cpu")
