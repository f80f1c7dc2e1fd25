"""Frozen batch norm inside the convolution before it: the same function, without passes over the feature."""

from __future__ import annotations

from typing import TypeVar

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


class FrozenNormConv2d(Conv2d):
    """A convolution whose weight is multiplied by its frozen norm's scale, instead of its output.

    Parameters and buffers are those of the convolution and the norm that it is made of, under the same names.
    Statistics are constant, so gradients are the same.

    Args:
        convolution: ends in a ``FrozenBatchNorm2d``; its padding is of zeros.
    """

    norm: FrozenBatchNorm2d

    def __init__(self, convolution: Conv2d):
        nn.Module.__init__(self)
        self.__dict__.update(convolution.__dict__)  # the same parameters, not copies

    def forward(self, x: Tensor) -> Tensor:
        """(B, in channels, rows, columns) -> (B, out channels, rows, columns), activated."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        weight = self.weight * scale[:, None, None, None]
        x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(network: Network) -> Network:
    """Put a ``FrozenNormConv2d`` in the place of every convolution of a network that ends in a frozen norm.

    Args:
        network: may have other norms, which stay; names of parameters and buffers stay too.

    Returns:
        The network itself.
    """
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            # Not subclasses: what they compute is their own.
            if type(module) is Conv2d and type(module.norm) is FrozenBatchNorm2d and module.padding_mode == "zeros":
                setattr(parent, name, FrozenNormConv2d(module))
    return network
