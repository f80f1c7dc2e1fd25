"""What pixel decoders are and share, and BasePixelDecoder: backbone features -> per-pixel embeddings at stride 4.

res5 (1/32) -> layer_4 ----------------+
res4 (1/16) -> adapter_3 -> (+ upsampled) -> layer_3 ---+
res3 (1/8)  -> adapter_2 -> (+ upsampled) -> layer_2 ---+
res2 (1/4)  -> adapter_1 -> (+ upsampled) -> layer_1 -> mask_features (B,C,h,w)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class DecodedFeatures:
    """What a pixel decoder makes of backbone features, for query decoders.

    Attributes:
        finest: (B, channels, h, w), on the grid of the masks.
        projection: the convolution from it to the C channels of pixel embeddings.
        levels: (B, channels, rows, columns) each, what queries may attend to in turn; the coarsest first.
        encoded: (B,D,rows,columns), what a transformer encoder made of the backbone's coarsest feature; None without.
    """

    finest: Tensor
    projection: Conv2d
    levels: list[Tensor] = field(default_factory=list)
    encoded: Tensor | None = None
    _mask_features: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def mask_features(self) -> Tensor:
        """(B,C,h,w): the pixel embeddings, computed when they are asked for, once."""
        if self._mask_features is None:  # torch.compile knows no functools.cached_property
            self._mask_features = self.projection(self.finest)
        return self._mask_features

    def resized_mask_features(self, size: Sequence[int]) -> Tensor:
        """(B,C,*size): the pixel embeddings on another grid, bilinear, without a gradient.

        A 1x1 projection may come after the resize, for both are linear: then none of the whole grid is needed.
        """
        commutes = self.projection.kernel_size == (1, 1)
        with torch.no_grad():
            resized = F.interpolate(
                self.finest if commutes else self.mask_features, tuple(size), mode="bilinear", align_corners=False
            )
            return self.projection(resized) if commutes else resized


class PixelDecoder(nn.Module, ABC):
    """A top-down feature pyramid over something coarse, which ends in one embedding a pixel.

    Subclasses add ``mask_features``, the projection to the C channels of embeddings (the released weights' name).

    Args:
        input_shape: backbone feature name -> channels and stride.
        num_levels: how many of the features, from the finest on, are levels of the pyramid.
        convs_dim: channels of the pyramid.
        norm: name of a normalisation ("GN", ...); "" for none, then convolutions have a bias.
    """

    mask_features: Conv2d
    encoded_channels: int | None = None  # of ``DecodedFeatures.encoded``; None: there is none
    level_channels: int | None = None  # of each of its ``levels``; None: there are none
    upsampling = "nearest"  # how a coarser level comes to the grid of a finer one

    def __init__(self, input_shape: dict[str, ShapeSpec], *, num_levels: int, convs_dim: int, norm: str):
        super().__init__()
        self.feature_names = sorted(input_shape, key=lambda name: input_shape[name].stride)  # finest first
        self._norm = norm
        self._num_levels = num_levels
        # adapter_i and layer_i (1 is the finest) are the names of the released weights.
        for index, name in enumerate(self.feature_names[:num_levels], start=1):
            self.add_module(f"adapter_{index}", self._convolution(input_shape[name].channels, convs_dim, kernel_size=1))
            self.add_module(f"layer_{index}", self._convolution(convs_dim, convs_dim, kernel_size=3, relu=True))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.SEM_SEG_HEAD``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "convs_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def _convolution(self, in_channels: int, out_channels: int, *, kernel_size: int, relu: bool = False) -> Conv2d:
        convolution = Conv2d(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            padding=kernel_size // 2,
            bias=self._norm == "",
            norm=get_norm(self._norm, out_channels),
            activation=F.relu_ if relu else None,
        )
        weight_init.c2_xavier_fill(convolution)
        return convolution

    def forward(self, features: dict[str, Tensor]) -> DecodedFeatures:
        """Decode backbone features, name -> (B, channels, rows, columns)."""
        return self.decode(dict(features))

    @abstractmethod
    def decode(self, features: dict[str, Tensor]) -> DecodedFeatures:
        """As ``forward``, and takes each feature out of the dict when it is used: its memory is then free for the next.

        Only without gradients is anything freed; the finest feature is the network's largest.
        """

    def _top_down(self, pyramid: Tensor, features: dict[str, Tensor]) -> Iterator[Tensor]:
        """The levels (B,channels,rows,columns) of the pyramid over a coarse feature and some of the backbone's."""
        for index in range(self._num_levels, 0, -1):
            adapter, layer = self._layer(f"adapter_{index}"), self._layer(f"layer_{index}")
            # What they would do if called; in steps, so that no more than two tensors of this level are there at once.
            level = F.conv2d(features.pop(self.feature_names[index - 1]), adapter.weight, adapter.bias)
            level = level if adapter.norm is None else adapter.norm(level)
            level = level.add_(_resize(pyramid, level.shape[-2:], self.upsampling))
            level = F.conv2d(level, layer.weight, layer.bias, padding=layer.padding)
            pyramid = F.relu_(level if layer.norm is None else layer.norm(level))
            del level
            yield pyramid

    def _layer(self, name: str) -> Conv2d:
        layer = self.get_submodule(name)
        assert isinstance(layer, Conv2d)
        return layer


def _resize(maps: Tensor, size: Sequence[int], mode: str) -> Tensor:
    return F.interpolate(maps, tuple(size), mode=mode, align_corners=None if mode == "nearest" else False)


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(PixelDecoder):
    """A top-down feature pyramid over all features of the backbone.

    Args:
        input_shape: see ``PixelDecoder``.
        convs_dim: channels of the pyramid.
        mask_dim: C.
        norm: see ``PixelDecoder``.

    Source: MaskFormer, section 3.3 "Pixel-level module" and 4.1.
    """

    @configurable
    def __init__(self, input_shape: dict[str, ShapeSpec], *, convs_dim: int, mask_dim: int, norm: str = ""):
        super().__init__(input_shape, num_levels=len(input_shape) - 1, convs_dim=convs_dim, norm=norm)
        self._coarsest_layer = f"layer_{len(input_shape)}"
        self._add_coarsest_layer(input_shape[self.feature_names[-1]].channels, convs_dim)
        self.mask_features = Conv2d(convs_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    def _add_coarsest_layer(self, in_channels: int, convs_dim: int) -> None:
        self.add_module(self._coarsest_layer, self._convolution(in_channels, convs_dim, kernel_size=3, relu=True))

    def decode(self, features: dict[str, Tensor]) -> DecodedFeatures:
        """See ``PixelDecoder.decode``."""
        return DecodedFeatures(self._finest(features.pop(self.feature_names[-1]), features), self.mask_features)

    def _finest(self, coarsest: Tensor, features: dict[str, Tensor]) -> Tensor:
        """The finest level (B,channels,h,w) of the pyramid over a coarsest feature and the backbone's others."""
        pyramid = self._layer(self._coarsest_layer)(coarsest)
        del coarsest  # nobody else may hold it
        for level in self._top_down(pyramid, features):
            pyramid = level
        return pyramid
