"""Focal and dice, twice: between matched pairs (the loss) and between all pairs (the matching cost).

Everything is a function of mask logits x and binary targets t, with p = sigmoid(x).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .chunks import elements_at_once

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


def sigmoid_focal_loss(mask_logits: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """Focal loss of matched masks: mean over pixels, summed over masks, divided by the number of masks.

    Args:
        mask_logits: (N, pixels) logits.
        targets: (N, pixels) 0 or 1, floating.
        num_masks: the normaliser.

    Returns:
        Scalar, at least 0.

    Source: Lin et al., arXiv 1708.02002, equation 5; MaskFormer, section 3.2.
    """
    probs = mask_logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none")
    error = probs * (1 - targets) + (1 - probs) * targets  # 1 - p_t
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return (alpha * error**FOCAL_GAMMA * cross_entropy).mean(1).sum() / num_masks


def dice_loss(mask_logits: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """Dice loss of matched masks: 1 - (2 sum pt + 1) / (sum p + sum t + 1), summed, divided by the number of masks.

    Args:
        mask_logits: (N, pixels) logits.
        targets: (N, pixels) 0 or 1, floating.
        num_masks: the normaliser.

    Returns:
        Scalar, 0 for a perfect prediction.

    Source: Milletari et al., arXiv 1606.04797, with 1 added above and below; MaskFormer, section 3.2.
    """
    probs = mask_logits.sigmoid()
    overlap = 2 * (probs * targets).sum(1)
    total = probs.sum(1) + targets.sum(1)
    return (1 - (overlap + 1) / (total + 1)).sum() / num_masks


def pairwise_mask_costs(mask_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of every query against every target: what the two functions above give for one pair each.

    A pixel costs ``positive`` where the target is 1 and ``negative`` where it is 0; so one product of their
    difference with the targets does for both. With softplus(x) = -log(1 - p), and so -log(p) = softplus(x) - x.

    Args:
        mask_logits: (Q, pixels) logits.
        targets: (G, pixels) 0 or 1, floating.

    Returns:
        Focal and dice cost, (Q,G) each.
    """
    num_pixels = targets.shape[1]
    queries_at_once = max(elements_at_once(mask_logits.device) // num_pixels, 1)
    costs = [_some_mask_costs(queries, targets) for queries in mask_logits.split(queries_at_once)]
    focal, overlap, predicted = (torch.cat(parts) for parts in zip(*costs))
    dice = 1 - (2 * overlap + 1) / (predicted + targets.sum(1) + 1)
    return focal / num_pixels, dice


def _some_mask_costs(mask_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over pixels: the focal cost (n,G), p t (n,G) and p (n,1) of (n, pixels) logits."""
    probs, softplus = mask_logits.sigmoid(), F.softplus(mask_logits)
    negative = probs.square().mul_(softplus)
    positive = (1 - probs).square_().mul_(softplus.sub_(mask_logits))
    sum_negative = negative.sum(1, keepdim=True).mul_(1 - FOCAL_ALPHA)
    # alpha positive - (1 - alpha) negative, over alpha
    focal = positive.sub_(negative, alpha=(1 - FOCAL_ALPHA) / FOCAL_ALPHA) @ targets.mT
    return focal.mul_(FOCAL_ALPHA).add_(sum_negative), probs @ targets.mT, probs.sum(1, keepdim=True)
