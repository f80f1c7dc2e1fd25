"""Frozen batch norm inside the convolution before it: the same function, without passes over the feature."""

from __future__ import annotations

from typing import TypeVar

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


class FrozenNormConv2d(Conv2d):
    """A convolution whose weight is multiplied by its frozen norm's scale, instead of its output.

    Parameters and buffers are those of Detectron2's ``Conv2d`` and ``FrozenBatchNorm2d``. Statistics are constant, so
    gradients are the same. What they come to is kept until one of them is written to or replaced: on an accelerator
    its few small operators would cost as much of the host's time as the convolution.
    """

    norm: FrozenBatchNorm2d
    _kept: tuple[list[tuple[Tensor, int]], tuple[Tensor, Tensor]] | None = None

    def _scale_and_bias(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        buffers = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if any(buffer.is_inference() for buffer in buffers):  # these do not tell when they are written to
            return _fold(norm)
        kept = self._kept
        if kept is None or any(a is not b or a._version != seen for a, (b, seen) in zip(buffers, kept[0])):
            with torch.inference_mode(False), torch.no_grad():  # what inference makes, training could not use
                kept = [(buffer, buffer._version) for buffer in buffers], _fold(norm)
            self._kept = kept
        return kept[1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in channels, rows, columns) -> (B, out channels, rows, columns), activated."""
        scale, bias = self._scale_and_bias()
        if self.bias is not None:
            bias = bias + self.bias * scale
        x = F.conv2d(
            x, self.weight * scale[:, None, None, None], bias, self.stride, self.padding, self.dilation, self.groups
        )
        return x if self.activation is None else self.activation(x)


def _fold(norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def fold_frozen_norms(network: Network) -> Network:
    """Let every convolution of a network that ends in a frozen norm compute as ``FrozenNormConv2d``, in place.

    Args:
        network: may have other norms, which stay; names of parameters and buffers stay too.

    Returns:
        The network itself.
    """
    for module in network.modules():
        # Not subclasses: what they compute is their own.
        if type(module) is Conv2d and type(module.norm) is FrozenBatchNorm2d and module.padding_mode == "zeros":
            module.__class__ = FrozenNormConv2d
    return network
