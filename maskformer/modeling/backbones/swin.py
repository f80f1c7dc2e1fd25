"""D2SwinTransformer: images -> a pyramid of features, by attention inside windows that shift from block to block.

image (B,3,H,W) -> patch_embed -> layers.0 -> norm0 -> res2 (1/4)
                                  downsample, layers.1 -> norm1 -> res3 (1/8)
                                  downsample, layers.2 -> norm2 -> res4 (1/16)
                                  downsample, layers.3 -> norm3 -> res5 (1/32)

Inside, a feature is (B, rows, columns, channels). Names of sub-modules are those of the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.structures import InputError

from .swin_stage import SwinStage, pad_to_multiple

_FEATURES = ("res2", "res3", "res4", "res5")


class PatchEmbedding(nn.Module):
    """Each patch of the image becomes one cell.

    Args:
        in_channels: of the image.
        dim: channels of a cell.
        patch_size: pixels along a patch's side.
        norm: end in a LayerNorm.
    """

    def __init__(self, in_channels: int, dim: int, *, patch_size: int, norm: bool):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, H/patch, W/patch, dim), both rounded up."""
        padded = pad_to_multiple(images.permute(0, 2, 3, 1), self.patch_size).permute(0, 3, 1, 2)
        return self.norm(self.proj(padded).permute(0, 2, 3, 1).contiguous())


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin Transformer as a backbone for dense prediction; takes images of any size.

    Args:
        in_channels: of the image.
        patch_size: pixels along a patch's side: the stride of res2.
        embed_dim: channels of res2; each later stage has twice as many.
        depths: blocks of each stage.
        num_heads: attention heads of each stage; each divides the stage's channels.
        window_size: M.
        mlp_ratio: hidden width of the networks over their input's.
        qkv_bias: see ``WindowAttention``.
        qk_scale: see ``WindowAttention``.
        dropout: probability, on embedded patches and in every block.
        attention_dropout: probability, on attention weights.
        stochastic_depth: probability that the last block is left out; it rises linearly from 0 at the first one.
        absolute_position: add a learned position embedding to the patches, resized to the image.
        pretrain_image_size: pixels along the side of the images that this embedding is for.
        patch_norm: normalise embedded patches.
        out_features: which of "res2".."res5" to give.
        use_checkpoint: save memory in training by computing activations twice.
        freeze_at: how much is not trained, as in Detectron2's ResNets: 0 nothing, 1 the patches' embedding and
            position, 2 to 5 the stages of res2 to res5 too, each with the norm of its output.

    Source: Swin Transformer (arXiv 2103.14030), section 3; a LayerNorm on each output as the released weights have.

    Raises:
        InputError: the numbers of the stages do not fit each other, or an output has no such name.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.3,
        absolute_position: bool = False,
        pretrain_image_size: int = 224,
        patch_norm: bool = True,
        out_features: Sequence[str] = _FEATURES,
        use_checkpoint: bool = False,
        freeze_at: int = 0,
    ):
        super().__init__()
        dims = [embed_dim * 2**stage for stage in range(len(depths))]
        _check_stages(dims, depths, num_heads, out_features)
        self.patch_size = patch_size
        self.patch_embed = PatchEmbedding(in_channels, embed_dim, patch_size=patch_size, norm=patch_norm)
        self.absolute_pos_embed = None
        if absolute_position:
            grid = pretrain_image_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, grid, grid))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            SwinStage(
                dim,
                stochastic_depths=probabilities,
                window_size=window_size,
                merge=stage < len(depths) - 1,
                use_checkpoint=use_checkpoint,
                num_heads=num_heads[stage],
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for stage, (dim, probabilities) in enumerate(zip(dims, rising_probabilities(stochastic_depth, depths)))
        )
        self.apply(_initialise_linear)
        self._out_features = [name for name in _FEATURES if name in out_features]
        self._out_feature_channels = dict(zip(_FEATURES, dims))
        self._out_feature_strides = {name: patch_size * 2**stage for stage, name in enumerate(_FEATURES)}
        for name in self._out_features:
            self.add_module(self._norm_name(name), nn.LayerNorm(self._out_feature_channels[name]))
        self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read ``MODEL.SWIN`` and ``MODEL.BACKBONE.FREEZE_AT``."""
        node = cfg.MODEL.SWIN
        return {
            "in_channels": input_shape.channels,
            "patch_size": node.PATCH_SIZE,
            "embed_dim": node.EMBED_DIM,
            "depths": node.DEPTHS,
            "num_heads": node.NUM_HEADS,
            "window_size": node.WINDOW_SIZE,
            "mlp_ratio": node.MLP_RATIO,
            "qkv_bias": node.QKV_BIAS,
            "qk_scale": node.QK_SCALE,
            "dropout": node.DROP_RATE,
            "attention_dropout": node.ATTN_DROP_RATE,
            "stochastic_depth": node.DROP_PATH_RATE,
            "absolute_position": node.APE,
            "pretrain_image_size": node.PRETRAIN_IMG_SIZE,
            "patch_norm": node.PATCH_NORM,
            "out_features": node.OUT_FEATURES,
            "use_checkpoint": node.USE_CHECKPOINT,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def _freeze(self, freeze_at: int) -> None:
        frozen = ["patch_embed.", "absolute_pos_embed"] if freeze_at > 0 else []
        for stage in range(freeze_at - 1):
            frozen += [f"layers.{stage}.", f"norm{stage}."]
        for name, parameter in self.named_parameters():
            if name.startswith(tuple(frozen)):
                parameter.requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        """The stride of the coarsest stage: padded to it, strides of the outputs are exact."""
        return self.patch_size * 2 ** (len(self.layers) - 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features of images.

        Args:
            images: (B, in_channels, H, W), normalised.

        Returns:
            Name -> (B, channels, H/stride, W/stride), both rounded up.
        """
        x = self.pos_drop(self._embed(images))
        outputs = {}
        for name, layer in zip(_FEATURES, self.layers):
            refined, x = layer(x)
            if name in self._out_features:
                normalised = self.get_submodule(self._norm_name(name))(refined)
                outputs[name] = normalised.permute(0, 3, 1, 2).contiguous()
        return outputs

    def _embed(self, images: Tensor) -> Tensor:
        """(B, rows, columns, channels): the patches, with their positions if those are learned."""
        patches = self.patch_embed(images)
        if self.absolute_pos_embed is None:
            return patches
        position: Tensor = self.absolute_pos_embed
        grid = patches.shape[1:3]
        if torch.compiler.is_compiling() or position.shape[-2:] != grid:  # exported, it is for every size
            position = F.interpolate(position, size=grid, mode="bicubic")
        return patches + position.permute(0, 2, 3, 1)

    @staticmethod
    def _norm_name(feature: str) -> str:
        return f"norm{_FEATURES.index(feature)}"


def rising_probabilities(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of every block, by stage: 0 for the first of all, then rising in equal steps.

    Args:
        last: the last block's.
        depths: blocks of each stage.

    Source: Deep Networks with Stochastic Depth (arXiv 1603.09382), section 3; Swin Transformer, appendix A2.
    """
    steps = max(sum(depths) - 1, 1)
    ends = list(accumulate(depths))
    return [[last * block / steps for block in range(end - depth, end)] for end, depth in zip(ends, depths)]


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_stages(
    dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], out_features: Sequence[str]
) -> None:
    if not 1 <= len(depths) == len(num_heads) <= len(_FEATURES):
        raise InputError(
            f"MODEL.SWIN.DEPTHS is {list(depths)} and MODEL.SWIN.NUM_HEADS is {list(num_heads)}, expected one number "
            f"each for 1 to {len(_FEATURES)} stages."
        )
    if any(dim % heads for dim, heads in zip(dims, num_heads)):
        raise InputError(
            f"MODEL.SWIN.NUM_HEADS is {list(num_heads)}, expected divisors of the stages' channels {dims}, which "
            "MODEL.SWIN.EMBED_DIM gives."
        )
    valid = _FEATURES[: len(depths)]
    if not out_features or set(out_features) - set(valid):
        raise InputError(f"MODEL.SWIN.OUT_FEATURES is {list(out_features)}, expected some of {', '.join(valid)}.")
