"""EoMT: a plain vision transformer segments; queries enter before its last blocks, and nothing is added but heads.

images -> patches -> blocks -> [queries, class token, registers, patches] -> last blocks -> norm
    queries -> class of each, mask embedding of each
    patches -> upscaled to a quarter of the image: pixel embeddings

While training, a query attends to the patches of the mask that it would give so far (masked attention). Block by block
that is given up (annealing), so that in inference no mask is needed but the last.

Source: "Your ViT is Secretly an Image Segmentation Model" (arXiv 2503.19108), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.structures import MaskPredictions, PixelsOfLayers

from .backbones.vit import VisionTransformer


class EoMTNetwork(nn.Module):
    """Normalised images -> Q classes and masks.

    Sub-modules are named as in the released weights.

    Args:
        backbone: the vision transformer.
        num_classes: K.
        num_queries: Q.
        num_blocks: how many of its last blocks queries go through; L is one more.
        masked_attention: while training, queries attend to their own masks.

    Attributes:
        attn_mask_probs: (num_blocks,), how probably a query is masked in each of them; see ``set_masking``.
    """

    attn_mask_probs: Tensor

    def __init__(
        self,
        backbone: VisionTransformer,
        *,
        num_classes: int,
        num_queries: int,
        num_blocks: int,
        masked_attention: bool = True,
    ):
        super().__init__()
        dim = backbone.norm.normalized_shape[0]
        self.encoder = nn.ModuleDict({"backbone": backbone})
        self.q = nn.Embedding(num_queries, dim)
        self.class_head = nn.Linear(dim, num_classes + 1)  # index K is "no object"
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        num_doublings = max(1, int(math.log2(backbone.patch_size)) - 2)
        self.upscale = nn.Sequential(*(ScaleBlock(dim) for _ in range(num_doublings)))
        self.num_blocks = num_blocks
        self.masked_attention = masked_attention
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks))
        self._probabilities = [1.0] * num_blocks  # the same, for which no device is waited

    @property
    def backbone(self) -> VisionTransformer:
        """The vision transformer."""
        return self.encoder["backbone"]  # type: ignore[return-value]

    def set_masking(self, probabilities: Sequence[float]) -> None:
        """Say how probably a query is masked in each of the blocks that queries go through.

        Args:
            probabilities: as many as there are such blocks, the first block first, 0..1.
        """
        self._probabilities = list(probabilities)
        for index, probability in enumerate(probabilities):
            self.attn_mask_probs[index] = probability  # a copy of all would wait for the device

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,3,H,W) normalised images, H and W in whole patches -> (B,Q,K+1) class logits, (B,Q,h,w) mask logits."""
        return self.predict_layers(images).final

    def predict_layers(self, images: Tensor) -> MaskPredictions:
        """Predict what losses are taken of.

        Args:
            images: as for ``forward``.

        Returns:
            While training with masked attention, L predictions: before each of the last blocks, and after them; else
            that alone. A gradient goes through ``MaskPredictions.masks_of_pairs``, not through ``mask_logits``.
        """
        tokens, rotation = self._encode(images)
        # Compiled, a number is part of the program, a tensor is not.
        is_compiled = self.training and torch.compiler.is_compiling()
        probabilities = self.attn_mask_probs if is_compiled else self._probabilities
        is_masked = self.training and self.masked_attention
        predictions: list[_Prediction] = []
        mask_logits: list[Tensor] = []
        for block, probability in zip(self.backbone.blocks[-self.num_blocks :], probabilities):
            allowed = None
            if is_masked:
                predictions.append(self._predict(tokens, images))
                mask_logits.append(self._mask_logits(predictions[-1]))
                allowed = self._may_attend(mask_logits[-1], images, probability)
            tokens = block(tokens, rotation, allowed)
        predictions.append(self._predict(tokens, images))
        mask_logits.append(self._mask_logits(predictions[-1]))
        class_logits, mask_embeddings, patches = zip(*predictions)
        return MaskPredictions(
            class_logits=torch.stack(class_logits),
            mask_logits=torch.stack(mask_logits),
            mask_embeddings=torch.stack(mask_embeddings),
            pixel_embeddings=PixelsOfLayers(self.upscale, patches),
        )

    @torch.no_grad()
    def _mask_logits(self, prediction: _Prediction) -> Tensor:
        """(B,Q,h,w), without a gradient, for which pixel embeddings would be kept: they are many times the patches."""
        pixel_embeddings = self.upscale(prediction.patches)
        products = prediction.mask_embeddings @ pixel_embeddings.flatten(2)
        return products.unflatten(2, pixel_embeddings.shape[2:])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What ``forward``'s masks are made of: (B,Q,K+1) class logits, (B,Q,D) and (B,D,h,w) embeddings."""
        tokens, rotation = self._encode(images)
        for block in self.backbone.blocks[-self.num_blocks :]:
            tokens = block(tokens, rotation)
        class_logits, mask_embeddings, patches = self._predict(tokens, images)
        return class_logits, mask_embeddings, self.upscale(patches)

    def compose(
        self, encoded: tuple[Tensor, Tensor, Tensor], select: Callable[[Tensor], Tensor] | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """What ``forward`` gives, by image, and of the masks only those that are wanted: ``MaskFormerHead.compose``."""
        pairs = []
        for class_logits, mask_embeddings, pixel_embeddings in zip(*encoded):
            queries = slice(None) if select is None else select(class_logits)
            masks = mask_embeddings[queries] @ pixel_embeddings.flatten(1)
            pairs.append((class_logits[queries], masks.unflatten(1, pixel_embeddings.shape[1:])))
        return pairs

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens before the last blocks, queries in front, and the rotation that the blocks take."""
        tokens, rotation = self.backbone.embed(images)
        for block in self.backbone.blocks[: -self.num_blocks]:
            tokens = block(tokens, rotation)
        queries = self.q.weight.expand(tokens.shape[0], -1, -1)
        return torch.cat([queries.to(tokens.dtype), tokens], dim=1), rotation

    def _predict(self, tokens: Tensor, images: Tensor) -> _Prediction:
        """Read tokens, queries first."""
        num_queries = self.q.num_embeddings
        queries = self.backbone.norm(tokens[:, :num_queries])
        patches = self.backbone.norm(tokens[:, num_queries + self.backbone.num_prefix_tokens :])
        patches = patches.unflatten(1, self.backbone.grid(images)).permute(0, 3, 1, 2)
        return _Prediction(self.class_head(queries), self.mask_head(queries), patches)

    @torch.no_grad()
    def _may_attend(self, mask_logits: Tensor, images: Tensor, probability: float | Tensor) -> Tensor:
        """(B,Q,T) bool: a query may attend to patches within its mask, if it is masked at all, and to all else."""
        on_grid = F.interpolate(mask_logits, self.backbone.grid(images), mode="bilinear", align_corners=False)
        inside = on_grid.flatten(2) > 0
        if torch.compiler.is_compiling() or probability < 1:  # each query of each image is masked, or opened, by itself
            is_open = torch.rand(*inside.shape[:2], device=inside.device) > probability
            inside = inside | is_open[..., None]
        others = self.q.num_embeddings + self.backbone.num_prefix_tokens
        return torch.cat([inside.new_ones(*inside.shape[:2], others), inside], dim=-1)


class _Prediction(NamedTuple):
    """(B,Q,K+1) class logits, (B,Q,D) mask embeddings, and (B,D,rows,columns) that pixel embeddings are made of."""

    class_logits: Tensor
    mask_embeddings: Tensor
    patches: Tensor


class ScaleBlock(nn.Module):
    """Twice as many rows and columns.

    Args:
        dim: D.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim, 1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """(B,D,rows,columns) -> (B,D,2 rows,2 columns)."""
        features = self.conv2(F.gelu(self._double(features)))
        return self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _double(self, features: Tensor) -> Tensor:
        """What ``conv1`` gives: its kernel is as large as its stride, so a pixel's four are a product of it alone."""
        kernels = self.conv1.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 D, D)
        assert self.conv1.bias is not None
        products = F.linear(features.permute(0, 2, 3, 1), kernels, torch.cat([self.conv1.bias] * 4))
        rows_apart = products.unflatten(3, (2, 2, -1)).transpose(2, 3)  # (B, rows, 2, columns, 2, D)
        return rows_apart.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def build_eomt_network(cfg: CfgNode) -> EoMTNetwork:
    """Read ``MODEL.EOMT``, and of the keys that all models share the numbers of classes and queries."""
    node = cfg.MODEL.EOMT
    backbone = VisionTransformer(
        image_size=(node.IMAGE_SIZE, node.IMAGE_SIZE),
        patch_size=node.PATCH_SIZE,
        dim=node.EMBED_DIM,
        depth=node.DEPTH,
        num_heads=node.NUM_HEADS,
        num_registers=node.NUM_REGISTERS,
        gated=node.SWIGLU,
        rotary=node.ROTARY,
        in_channels=len(cfg.MODEL.PIXEL_MEAN),
    )
    return EoMTNetwork(
        backbone,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        num_queries=cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
        num_blocks=node.NUM_BLOCKS,
        masked_attention=node.MASKED_ATTENTION,
    )
