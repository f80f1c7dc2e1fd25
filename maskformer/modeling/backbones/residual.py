"""Residual sums over the shortcut: at inference a ResNet holds one feature of a block's width instead of two."""

from __future__ import annotations

from typing import TypeVar

import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from ..in_place import row_bands
from .frozen_norm import FrozenNormConv2d

Network = TypeVar("Network", bound=nn.Module)


class InPlaceBottleneckBlock(BottleneckBlock):
    """A bottleneck block that adds to its shortcut in place, and to its input where that is the shortcut.

    Parameters and values are those of Detectron2's ``BottleneckBlock``, and so is what it does while gradients are
    enabled. Sums of a band are made while it is in the cache, which takes a tenth less time as well.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in channels, rows, columns) -> (B, out channels, rows / stride, columns / stride)."""
        if torch.is_grad_enabled():
            return super().forward(x)
        inner = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        total = x if self.shortcut is None else self.shortcut(x)
        for rows in row_bands(total):
            total[:, :, rows].add_(self.conv3(inner[:, :, rows])).relu_()
        return total


def sum_residuals_in_place(network: Network) -> Network:
    """Let bottleneck blocks of ResNets compute as ``InPlaceBottleneckBlock``, in place.

    Args:
        network: its frozen norms are folded (``fold_frozen_norms``). Where a norm is left behind a block's last
            convolution the block stays as it is, as statistics of a band are not those of the feature.

    Returns:
        The network itself.
    """
    for module in network.modules():
        if type(module) is ResNet:  # not subclasses: they may keep what is between blocks
            for stage in module.children():
                if isinstance(stage, nn.Sequential):
                    _change_class(stage)
    return network


def _change_class(stage: nn.Sequential) -> None:
    if not all(type(block) is BottleneckBlock and type(block.conv3) is FrozenNormConv2d for block in stage):
        return
    for position, block in enumerate(stage):
        # A stage's first input may be a feature that leaves the network; the others have no reader but the next block.
        if position > 0 or block.shortcut is not None:
            block.__class__ = InPlaceBottleneckBlock
