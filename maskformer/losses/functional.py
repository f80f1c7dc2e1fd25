"""Focal and dice, twice: between matched pairs (the loss) and between all pairs (the matching cost).

Everything is a function of mask logits x and binary targets t, with p = sigmoid(x).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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


def pairwise_focal_cost(mask_logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of every query against every target, a mean over pixels.

    Args:
        mask_logits: (Q, pixels) logits.
        targets: (G, pixels) 0 or 1, floating.

    Returns:
        (Q,G).

    A pixel costs ``positive`` where the target is 1 and ``negative`` where it is 0; so one product of their
    difference with the targets does for both.
    """
    log_p, log_not_p = F.logsigmoid(mask_logits), F.logsigmoid(-mask_logits)
    positive = -FOCAL_ALPHA * log_not_p.mul(FOCAL_GAMMA).exp() * log_p
    negative = -(1 - FOCAL_ALPHA) * log_p.mul(FOCAL_GAMMA).exp() * log_not_p
    cost = (positive - negative) @ targets.mT + negative.sum(-1, keepdim=True)
    return cost / mask_logits.shape[-1]


def pairwise_dice_cost(mask_logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every query against every target.

    Args:
        mask_logits: (Q, pixels) logits.
        targets: (G, pixels) 0 or 1, floating.

    Returns:
        (Q,G).
    """
    probs = mask_logits.sigmoid()
    overlap = 2 * (probs @ targets.mT)
    total = probs.sum(-1, keepdim=True) + targets.sum(-1)
    return 1 - (overlap + 1) / (total + 1)


class MatchedMaskLosses(torch.autograd.Function):
    """``sigmoid_focal_loss`` and ``dice_loss`` of each matched mask, upsampled to the target's size, in bounded memory.

    Masks are upsampled a few at a time; the gradient with respect to the low-resolution logits is made in the same
    pass, from one sigmoid and one softplus that both losses share, so nothing of the size of the image is kept for
    the backward pass. With s = x where t = 0 and -x where t = 1, and q = sigmoid(s) the error of a pixel:

        focal = alpha_t q^2 softplus(s)           d focal / ds = alpha_t q^2 (2 (1 - q) softplus(s) + q)
        dice  = 1 - n / m                         d dice / dx = q (1 - q) (n / m - 2 t) / m
        n = 2 sum pt + 1,  m = sum p + sum t + 1  (p (1 - p) = q (1 - q))

    ``apply(mask_logits (N,h,w), masks (G,H,W) bool, rows (N,) int64)`` compares ``mask_logits[i]`` with
    ``masks[rows[i]]`` and returns ``focal`` (N,) means over pixels, and ``dice`` (N,).
    """

    # Larger temporaries go back to the system after each use on a CPU (glibc), and fault in again.
    _CHUNK_ELEMENTS = 1 << 21

    @staticmethod
    def forward(ctx: Any, mask_logits: Tensor, masks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses, and both gradients at low resolution when one is needed."""
        focal, dice = mask_logits.new_zeros(len(rows)), mask_logits.new_zeros(len(rows))
        with_gradient = ctx.needs_input_grad[0]
        gradients = torch.zeros_like(mask_logits), torch.zeros_like(mask_logits)
        size = masks.shape[-2:]
        from_rows, from_columns = (
            _interpolation_matrix(*lengths, mask_logits) for lengths in zip(mask_logits.shape[-2:], size)
        )
        step = max(1, MatchedMaskLosses._CHUNK_ELEMENTS // size.numel())
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            upsampled = F.interpolate(mask_logits[chunk, None], size, mode="bilinear", align_corners=False)[:, 0]
            losses, fine_gradients = _focal_and_dice(upsampled, masks[rows[chunk]], with_gradient)
            focal[chunk], dice[chunk] = losses
            for gradient, fine in zip(gradients, fine_gradients):
                gradient[chunk] = from_rows.mT @ (fine @ from_columns)
        ctx.save_for_backward(*gradients)
        return focal, dice

    @staticmethod
    def backward(ctx: Any, focal_gradient: Tensor, dice_gradient: Tensor) -> tuple[Tensor, None, None]:
        """Scale each mask's stored gradients by what came in for its losses."""
        focal, dice = ctx.saved_tensors
        return focal * focal_gradient[:, None, None] + dice * dice_gradient[:, None, None], None, None


def _interpolation_matrix(length: int, new_length: int, like: Tensor) -> Tensor:
    """(new_length, length): linear interpolation along one axis; its transpose carries gradients back.

    Two products with it are several times faster than PyTorch's backward of ``interpolate`` on a CPU.
    """
    identity = torch.eye(length, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None], new_length, mode="linear", align_corners=False)[0].mT


def _focal_and_dice(
    logits: Tensor, masks: Tensor, with_gradient: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Per-mask focal and dice of (N,H,W) logits and bool masks, and their gradients if asked for."""
    signs = 1 - 2 * masks.to(logits.dtype)
    error_logits = logits * signs
    error, softplus = error_logits.sigmoid(), F.softplus(error_logits)
    alpha = torch.where(masks, FOCAL_ALPHA, 1 - FOCAL_ALPHA).to(logits.dtype)
    weighted_square = alpha * error.square()
    pixels = logits.shape[-2] * logits.shape[-1]
    focal = (weighted_square * softplus).sum((1, 2)) / pixels

    probs = torch.where(masks, 1 - error, error)
    numerator = 2 * (probs * masks).sum((1, 2)) + 1
    denominator = probs.sum((1, 2)) + masks.sum((1, 2)) + 1
    ratio = numerator / denominator
    if not with_gradient:
        return (focal, 1 - ratio), ()

    slope = error * (1 - error)
    focal_gradient = weighted_square * (2 * (1 - error) * softplus + error) * signs / pixels
    per_mask = (ratio / denominator)[:, None, None], (2 / denominator)[:, None, None]
    dice_gradient = slope * torch.where(masks, per_mask[0] - per_mask[1], per_mask[0])
    return (focal, 1 - ratio), (focal_gradient, dice_gradient)
