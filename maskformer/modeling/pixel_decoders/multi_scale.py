"""MSDeformAttnPixelDecoder: three levels that look at each other by deformable attention, then a pyramid to stride 4.

res5 (1/32) -> input_proj.0 --+                +-> levels[0] (1/32)
res4 (1/16) -> input_proj.1 --+-> transformer -+-> levels[1] (1/16)
res3 (1/8)  -> input_proj.2 --+                +-> levels[2] (1/8) --+
res2 (1/4)  -> adapter_1 ------------------------------> (+ upsampled) -> layer_1 -> mask_features (B,C,h,w)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn

from maskformer.structures import InputError

from ..transformer import (
    MultiScaleDeformableAttention,
    ResidualLayer,
    Sizes,
    initialise_matrices,
    layer_options,
    reference_points,
    sine_position_embedding,
)
from .base import DecodedFeatures, PixelDecoder

NUM_LEVELS = 3  # what the query decoder attends to in turn
_DIM_FEEDFORWARD = 1024  # of the released models, whatever DIM_FEEDFORWARD is: that is the query decoder's


class DeformableEncoderLayer(ResidualLayer):
    """Deformable self-attention among the cells of all levels, then a feed-forward network; both post-norm.

    Args:
        dim: D.
        num_heads: attention heads; divides D.
        num_levels: levels that each head looks at.
        dropout: probability.
    """

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, dropout: float):
        super().__init__(dim=dim, dim_feedforward=_DIM_FEEDFORWARD, dropout=dropout, pre_norm=False)
        initialise_matrices(self)  # the attention has a beginning of its own
        self.self_attn = MultiScaleDeformableAttention(dim, num_heads=num_heads, num_levels=num_levels)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, cells: Tensor, position: Tensor, references: Tensor, sizes: Sizes) -> Tensor:
        """Refine cells (B, cells, D), level by level; see ``MultiScaleDeformableAttention.forward``."""
        cells = self.residual(cells, self.norm1, lambda x: self.self_attn(x + position, references, x, sizes))
        return self.residual(cells, self.norm2, self.feed_forward)


class DeformableEncoder(nn.Module):
    """A stack of ``DeformableEncoderLayer`` over several levels.

    Args:
        dim: D.
        num_layers: may be 0.
        num_heads: attention heads; divides D.
        num_levels: of features.
        dropout: probability.

    Source: Deformable DETR (arXiv 2010.04159), section 4.2; Mask2Former (arXiv 2112.01527), section 3.2.1.
    """

    def __init__(self, *, dim: int, num_layers: int, num_heads: int, num_levels: int, dropout: float):
        super().__init__()
        # Named as in the released weights: encoder.layers.0..., level_embed.
        layers = nn.ModuleList(
            DeformableEncoderLayer(dim=dim, num_heads=num_heads, num_levels=num_levels, dropout=dropout)
            for _ in range(num_layers)
        )
        self.encoder = nn.ModuleDict({"layers": layers})
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Refine levels, each (B,D,rows,columns): the same shapes."""
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        cells = torch.cat([level.flatten(2).mT for level in levels], dim=1)
        position = torch.cat([self._position(index, size) for index, size in enumerate(sizes)])
        references = reference_points(sizes, like=cells)
        layers = self.encoder["layers"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            cells = layer(cells, position, references, sizes)
        parts = cells.split([rows * columns for rows, columns in sizes], dim=1)
        # Contiguous: some accelerators refuse views of what is not.
        return [part.mT.contiguous().unflatten(2, size) for part, size in zip(parts, sizes)]

    def _position(self, level: int, size: tuple[int, int]) -> Tensor:
        """(cells,D): where each cell is, on its level and on which."""
        embedding = self.level_embed[level]
        sine = sine_position_embedding(*size, len(embedding), embedding.device)
        return sine.to(embedding.dtype).flatten(1).mT + embedding


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(PixelDecoder):
    """Multi-scale deformable attention over coarse features, then a pyramid over the finer ones; in full precision.

    Args:
        input_shape: see ``PixelDecoder``.
        convs_dim: D, channels of the pyramid and width of the encoder.
        mask_dim: C.
        norm: see ``PixelDecoder``.
        encoded_features: names of those of the features, the coarsest, that the encoder takes.
        num_encoder_layers: layers of the encoder.
        num_heads: attention heads; divides D.
        dropout: probability.
        common_stride: pixels between two places of the finest level.

    Source: Mask2Former (arXiv 2112.01527), section 3.2.1 and 4.1 "Pixel decoder".
    """

    upsampling = "bilinear"

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        convs_dim: int,
        mask_dim: int,
        norm: str = "",
        encoded_features: Sequence[str],
        num_encoder_layers: int,
        num_heads: int,
        dropout: float,
        common_stride: int = 4,
    ):
        self._check(input_shape, encoded_features, common_stride)
        num_pyramid_levels = len(input_shape) - len(encoded_features)
        super().__init__(input_shape, num_levels=num_pyramid_levels, convs_dim=convs_dim, norm=norm)
        self.encoded_channels = self.level_channels = convs_dim
        self._encoded_names = self.feature_names[num_pyramid_levels:][::-1]  # the coarsest first
        self.input_proj = nn.ModuleList(
            _input_projection(input_shape[name].channels, convs_dim) for name in self._encoded_names
        )
        self.transformer = DeformableEncoder(
            dim=convs_dim,
            num_layers=num_encoder_layers,
            num_heads=num_heads,
            num_levels=len(self._encoded_names),
            dropout=dropout,
        )
        self.mask_features = FullPrecisionConv2d(convs_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @staticmethod
    def _check(input_shape: dict[str, ShapeSpec], encoded_features: Sequence[str], common_stride: int) -> None:
        """Refuse features that do not make a pyramid of ``NUM_LEVELS`` or more levels which ends at the stride."""
        key = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
        names = sorted(input_shape, key=lambda name: input_shape[name].stride)
        coarsest = names[len(names) - len(set(encoded_features)) :]
        if not encoded_features or set(encoded_features) != set(coarsest):
            raise InputError(
                f"{key} is {list(encoded_features)!r}, expected the coarsest of MODEL.SEM_SEG_HEAD.IN_FEATURES: of "
                f"{', '.join(names)} the last one or more."
            )
        if len(names) < NUM_LEVELS:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {names!r}, expected {NUM_LEVELS} features or more: queries attend "
                "to as many levels."
            )
        if input_shape[names[0]].stride != common_stride:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {common_stride}, expected {input_shape[names[0]].stride}, the "
                f"stride of {names[0]}, the finest of MODEL.SEM_SEG_HEAD.IN_FEATURES."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.SEM_SEG_HEAD`` and, for the encoder, heads and dropout of ``MODEL.MASK_FORMER``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        layer = layer_options(cfg)
        return {
            **super().from_config(cfg, input_shape),
            "encoded_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "num_encoder_layers": head.TRANSFORMER_ENC_LAYERS,
            "num_heads": layer["num_heads"],
            "dropout": layer["dropout"],
            "common_stride": head.COMMON_STRIDE,
        }

    def decode(self, features: dict[str, Tensor]) -> DecodedFeatures:
        """See ``PixelDecoder.decode``; autocast is off, as when the released weights were trained."""
        weight = self.mask_features.weight
        with _without_autocast(weight):
            for name in self.feature_names:
                features[name] = features[name].to(weight.dtype)
            projected = [
                projection(features.pop(name)) for name, projection in zip(self._encoded_names, self.input_proj)
            ]
            levels = self.transformer(projected)
            del projected
            levels += self._top_down(levels[-1], features)
        return DecodedFeatures(levels[-1], self.mask_features, levels[:NUM_LEVELS], encoded=levels[0])


def _without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)  # "meta" knows none


def _input_projection(in_channels: int, dim: int) -> nn.Module:
    convolution = nn.Conv2d(in_channels, dim, kernel_size=1)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.GroupNorm(32, dim))


class FullPrecisionConv2d(Conv2d):
    """A convolution that autocast does not touch."""

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,rows,columns) in the weight's precision, of (B,channels,rows,columns)."""
        with _without_autocast(x):
            return super().forward(x.to(self.weight.dtype))
