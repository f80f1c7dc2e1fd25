"""BasePixelDecoder: backbone features -> per-pixel embeddings at stride 4.

res5 (1/32) -> layer_4 ----------------+
res4 (1/16) -> adapter_3 -> (+ upsampled) -> layer_3 ---+
res3 (1/8)  -> adapter_2 -> (+ upsampled) -> layer_2 ---+
res2 (1/4)  -> adapter_1 -> (+ upsampled) -> layer_1 -> mask_features (B,C,h,w)
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ..in_place import convolve_in_place, in_row_order, is_worth_in_place, normalise_in_place


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """A top-down feature pyramid that ends in one embedding a pixel.

    Args:
        input_shape: backbone feature name -> channels and stride.
        convs_dim: channels of the pyramid.
        mask_dim: C.
        norm: name of a normalisation ("GN", ...); "" for none, then convolutions have a bias.

    Source: MaskFormer, section 3.3 "Pixel-level module" and 4.1.
    """

    encoded_channels: int | None = None  # channels of the second result; None: there is none

    @configurable
    def __init__(self, input_shape: dict[str, ShapeSpec], *, convs_dim: int, mask_dim: int, norm: str = ""):
        super().__init__()
        self.feature_names = sorted(input_shape, key=lambda name: input_shape[name].stride)  # finest first
        self._norm = norm
        channels = [input_shape[name].channels for name in self.feature_names]
        # adapter_i, layer_i (1 is the finest) and mask_features are the names of the released weights.
        for index, in_channels in enumerate(channels[:-1], start=1):
            self.add_module(f"adapter_{index}", self._convolution(in_channels, convs_dim, kernel_size=1))
            self.add_module(f"layer_{index}", self._convolution(convs_dim, convs_dim, kernel_size=3, relu=True))
        self._add_coarsest_layer(channels[-1], convs_dim)
        self.mask_features = Conv2d(convs_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

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

    def _add_coarsest_layer(self, in_channels: int, convs_dim: int) -> None:
        self.add_module(
            f"layer_{len(self.feature_names)}", self._convolution(in_channels, convs_dim, kernel_size=3, relu=True)
        )

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

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Decode backbone features.

        Args:
            features: name -> (B, channels, rows, columns).

        Returns:
            ``pixel_embeddings`` (B,C,h,w) on the grid of the finest feature, and what a transformer encoder made of
            the coarsest feature (B,D,rows,columns), which this decoder has none of.
        """
        pyramid, encoded = self.build_pyramid(dict(features))
        return self.mask_features(pyramid), encoded

    def build_pyramid(self, features: dict[str, Tensor], *, overwrite: bool = False) -> tuple[Tensor, Tensor | None]:
        """Decode backbone features up to the last convolution, ``mask_features``.

        Args:
            features: as for ``forward``. Each is taken out when it is used, so that without gradients its memory is
                free for the next level.
            overwrite: a large one may be written over too, without gradients: nobody reads it afterwards.

        Returns:
            The pyramid's finest level (B, channels, h, w), and the second result of ``forward``.
        """
        coarsest = [features.pop(self.feature_names[-1])]
        return self._top_down(coarsest, features, overwrite=overwrite), None

    def _top_down(self, coarsest: list[Tensor], features: dict[str, Tensor], *, overwrite: bool) -> Tensor:
        pyramid = _apply_last(self._layer(len(self.feature_names)), coarsest, overwrite=False)
        for index in range(len(self.feature_names) - 1, 0, -1):
            finer = [features.pop(self.feature_names[index - 1])]
            lateral = _apply_last(self._convolution_named(f"adapter_{index}"), finer, overwrite=overwrite)
            level = [_add_upsampled(lateral, pyramid)]
            del lateral, pyramid
            pyramid = _apply_last(self._layer(index), level, overwrite=True)
        return pyramid

    def _layer(self, index: int) -> Conv2d:
        return self._convolution_named(f"layer_{index}")

    def _convolution_named(self, name: str) -> Conv2d:
        layer = self.get_submodule(name)
        assert isinstance(layer, Conv2d)
        return layer


def _add_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    """Add a coarse level, upsampled to the nearest neighbour, to a fine one in place; (B, channels, rows, columns)."""
    rows, columns = coarse.shape[-2:]
    if fine.requires_grad or fine.shape[-2:] != (2 * rows, 2 * columns):
        return fine.add_(F.interpolate(coarse, size=fine.shape[-2:], mode="nearest"))
    fine.unflatten(3, (columns, 2)).unflatten(2, (rows, 2)).add_(coarse[:, :, :, None, :, None])
    return fine


def _apply_last(layer: Conv2d, level: list[Tensor], *, overwrite: bool) -> Tensor:
    """Apply a layer to the one tensor of a list, and free or overwrite that before the norm makes another of its size.

    Without gradients, a large level then stays alone: the finest one is the network's largest feature.
    """
    if overwrite and layer.in_channels == layer.out_channels and is_worth_in_place(level[0]):
        x = convolve_in_place(level.pop(), layer)
    else:
        x = F.conv2d(level.pop(), layer.weight, layer.bias, padding=layer.padding)
    x = in_row_order(x)
    if isinstance(layer.norm, nn.GroupNorm) and is_worth_in_place(x):
        x = normalise_in_place(x, layer.norm)
    elif layer.norm is not None:
        x = layer.norm(x)
    return x if layer.activation is None else layer.activation(x)
