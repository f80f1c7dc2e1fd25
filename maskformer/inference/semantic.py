"""Semantic inference: one score a class and pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from .resize import Geometry


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Marginalise over queries: sum over q of p_q(class) * sigmoid(mask_q).

    Args:
        class_logits: (Q,K+1) logits.
        mask_logits: (Q,H,W) logits at the resolution of the answer.

    Returns:
        (K,H,W) scores, at least 0; the class of a pixel is the arg-max.

    Source: MaskFormer, section 3.4, "Semantic inference".
    """
    class_probs = class_logits.softmax(-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", class_probs, mask_logits.sigmoid())


def semantic_inference(
    class_logits: Tensor, mask_logits: Tensor, geometry: Geometry, *, restore_masks_first: bool
) -> Tensor:
    """Semantic scores at the original size of the image.

    Args:
        class_logits: (Q,K+1) logits.
        mask_logits: (Q,h,w) logits.
        geometry: the image's sizes.
        restore_masks_first: resize masks to the original size before classes are summed, else the scores after it.

    Returns:
        (K,height,width) scores.
    """
    mask_logits = geometry.upsample(mask_logits)
    if restore_masks_first:
        return semantic_scores(class_logits, geometry.restore(mask_logits))
    return geometry.restore(semantic_scores(class_logits, mask_logits))
