"""The per-pixel baselines: backbone features -> one class a pixel, under Detectron2's ``SemanticSegmentor``.

What MaskFormer is compared with: the same pixel decoder, and for the "plus" form the same transformer decoder, trained
by a cross-entropy on each pixel instead of by a set of masks.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.structures import InputError

from ..pixel_decoders import BasePixelDecoder, build_pixel_decoder
from ..query_decoders import StandardTransformerDecoder
from .mask_former import choose_attended_feature, pick_attended_feature


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselineHead(nn.Module):
    """A linear classifier on each pixel's embedding.

    Args:
        pixel_decoder: gives per-pixel embeddings.
        predictor: per-pixel embeddings -> K logits a pixel.
        ignore_value: the label of pixels that no loss is taken on.
        loss_weight: factor on the loss.
        common_stride: of the per-pixel embeddings; logits are upsampled by it.

    Source: MaskFormer (arXiv 2107.06278), section 4.1, "PerPixelBaseline".
    """

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: BasePixelDecoder,
        predictor: nn.Module,
        ignore_value: int = 255,
        loss_weight: float = 1.0,
        common_stride: int = 4,
    ):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.ignore_value = ignore_value  # SemanticSegmentor pads labels with it
        self.loss_weight = loss_weight
        self.common_stride = common_stride

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.SEM_SEG_HEAD`` and build the two parts."""
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        node = cfg.MODEL.SEM_SEG_HEAD
        predictor = Conv2d(pixel_decoder.mask_features.out_channels, node.NUM_CLASSES, kernel_size=1)
        weight_init.c2_msra_fill(predictor)
        return {**_loss_options(cfg), "pixel_decoder": pixel_decoder, "predictor": predictor}

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Classify pixels, or compute the loss.

        Args:
            features: name -> (B, channels, rows, columns).
            targets: (B,H,W) integers, 0..K-1 or the ignore value; needed in training.

        Returns:
            Training: None and the weighted losses by name, ``loss_sem_seg`` of the last layer and ``loss_sem_seg_0``,
            ... of earlier ones. Inference: logits (B, K, stride*h, stride*w) and no loss.

        Raises:
            InputError: in training, targets are missing, or labels of another image or model.
        """
        class_logits = self.class_logits(features)
        if self.training:
            return None, self._losses(class_logits, self._checked(targets, class_logits.shape))
        return self._upsample(class_logits[-1]), {}

    def _checked(self, targets: Tensor | None, logits_shape: torch.Size) -> Tensor:
        """The targets, if they fit (L,B,K,h,w) logits; values are looked at on a CPU alone: no device is waited for."""
        *_, num_classes, rows, columns = logits_shape
        if targets is None or targets.is_floating_point():
            seen = "no 'sem_seg'" if targets is None else f"a 'sem_seg' of {targets.dtype}"
            raise InputError(f"A training image has {seen}; expected (rows, columns) integers: the class of pixels.")
        grid = tuple(self.common_stride * side for side in (rows, columns))
        if any(not 0 <= whole - side < self.common_stride for whole, side in zip(grid, targets.shape[-2:])):
            raise InputError(
                f"'sem_seg' of a batch has {tuple(targets.shape[-2:])} rows and columns with its padding, the images "
                f"{grid}; expected labels of their images' sizes: transform both alike."
            )
        if targets.device.type == "cpu":
            foreign = targets[(targets != self.ignore_value) & ((targets < 0) | (targets >= num_classes))]
            if len(foreign):
                raise InputError(
                    f"'sem_seg' of a batch holds the label {foreign[0].item()}; expected 0..{num_classes - 1} "
                    f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES) or {self.ignore_value} (IGNORE_VALUE)."
                )
        return targets

    def class_logits(self, features: dict[str, Tensor]) -> Tensor:
        """(L,B,K,h,w), L supervised layers: one here."""
        return self.predictor(self.pixel_decoder(features).mask_features)[None]

    def _upsample(self, class_logits: Tensor) -> Tensor:
        return F.interpolate(class_logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)

    def _losses(self, class_logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        with torch.autocast(class_logits.device.type, enabled=False):
            losses = [self.loss_weight * self._loss(layer_logits, targets) for layer_logits in class_logits]
        earlier = {f"loss_sem_seg_{layer}": loss for layer, loss in enumerate(losses[:-1])}
        return {"loss_sem_seg": losses[-1], **earlier}

    def _loss(self, class_logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of (B,K,h,w) logits in float32 or float64: a mean over labelled pixels, 0 without any."""
        labels = targets.long()
        rows, columns = labels.shape[-2:]
        precise = class_logits.to(torch.promote_types(class_logits.dtype, torch.float32))
        # The grid reaches beyond an input that is no multiple of the stride: there is no label there.
        upsampled = self._upsample(precise)[..., :rows, :columns]
        total = F.cross_entropy(upsampled, labels, ignore_index=self.ignore_value, reduction="sum")
        return total / (labels != self.ignore_value).sum().clamp(min=1)


@SEM_SEG_HEADS_REGISTRY.register()
class PerPixelBaselinePlusHead(PerPixelBaselineHead):
    """The transformer decoder without a class branch: K queries, each of which is a class and gives its mask.

    Args:
        transformer_in_feature: what queries attend to; see ``MaskFormerHead``.
        baseline: arguments of ``PerPixelBaselineHead``; the predictor has no classes.

    Source: MaskFormer, section 4.1, "PerPixelBaseline+".
    """

    predictor: StandardTransformerDecoder

    @configurable
    def __init__(self, *, transformer_in_feature: str, **baseline: Any):
        super().__init__(**baseline)
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.SEM_SEG_HEAD``, choose the feature and build the two parts; Q is ``NUM_CLASSES``."""
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        name, channels = choose_attended_feature(cfg, input_shape, pixel_decoder)
        predictor = StandardTransformerDecoder(
            cfg, channels, num_classes=None, num_queries=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        )
        return {
            **_loss_options(cfg),
            "pixel_decoder": pixel_decoder,
            "predictor": predictor,
            "transformer_in_feature": name,
        }

    def class_logits(self, features: dict[str, Tensor]) -> Tensor:
        """See ``PerPixelBaselineHead``."""
        decoded = self.pixel_decoder(features)
        feature = pick_attended_feature(self.transformer_in_feature, features, decoded)
        return self.predictor.predict_masks(feature, decoded)


def _loss_options(cfg: CfgNode) -> dict[str, Any]:
    node = cfg.MODEL.SEM_SEG_HEAD
    return {"ignore_value": node.IGNORE_VALUE, "loss_weight": node.LOSS_WEIGHT, "common_stride": node.COMMON_STRIDE}
