"""Mask losses, twice: between matched pairs (the loss) and between all pairs (the matching cost).

Everything is a function of mask logits x and binary targets t, with p = sigmoid(x). The same as plainly as it can be
written is in benchmarks/definitions.py, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.kernels import find_kernels, for_each

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
# Pixels of one temporary on a CPU: a handful of float32 temporaries fit the second cache of a core. Half as large,
# waiting for other threads at the end of each operator costs more than the operator; over 32 MB they go back to the
# system after each use (glibc), and fault in again. docs/performance.md has the times.
PIXELS_PER_THREAD = 1 << 16
# Compiled loops have no temporaries, but what they write for products of matrices, which like more rows than a few.
PIXELS_WITH_KERNELS = 1 << 20
# Elsewhere each operator costs a launch: few large ones win, until the device is slower with them than the host is.
PIXELS_ELSEWHERE = 1 << 24
_NEGATIVE_WEIGHT = (1 - FOCAL_ALPHA) / FOCAL_ALPHA  # of what a pixel outside costs, if alpha is taken out of both


def pixels_at_once(device: torch.device, pieces: int = 1) -> int:
    """Values of one temporary.

    Args:
        device: where it is.
        pieces: of the whole work; enough of them have a thread each (see ``kernels.for_each``), fewer share all.
    """
    if device.type != "cpu":
        return PIXELS_ELSEWHERE
    num_threads = torch.get_num_threads()
    return PIXELS_PER_THREAD if pieces >= num_threads else PIXELS_PER_THREAD * num_threads


def compare_in_threads(
    compare: Callable[..., tuple[Tensor, ...]], parts: Sequence[Sequence[Tensor]], device: torch.device
) -> list[Tensor]:
    """What a function gives for each of some parts, several of which are computed at once; without gradients.

    Args:
        compare: gives the same number of tensors for each part.
        parts: its arguments.
        device: where they are.

    Returns:
        Each of its tensors, those of all parts one after another.
    """
    compared: list[tuple[Tensor, ...]] = [()] * len(parts)

    def compare_one(part: int) -> None:
        compared[part] = compare(*parts[part])

    for_each(compare_one, range(len(parts)), device)
    return [torch.cat(some) for some in zip(*compared)]


@contextmanager
def without_autocast(like: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Switch autocast off on a tensor's device; gives a function that casts half precision up to float32.

    Matching and losses are computed in float32 (or float64), whatever autocast and the network's precision say.
    """
    with torch.autocast(like.device.type, enabled=False):
        yield lambda x: x.to(torch.promote_types(x.dtype, torch.float32))


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


def sigmoid_ce_loss(mask_logits: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """Binary cross-entropy of matched masks: mean over pixels, summed over masks, divided by the number of masks.

    Args:
        mask_logits: (N, pixels) logits.
        targets: (N, pixels) 0..1, floating.
        num_masks: the normaliser.

    Returns:
        Scalar, at least 0.

    Source: Mask2Former (arXiv 2112.01527), section 4.
    """
    return F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none").mean(1).sum() / num_masks


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
    kernels = find_kernels(mask_logits)
    elements = pixels_at_once(mask_logits.device) if kernels is None else PIXELS_WITH_KERNELS
    parts = mask_logits.split(max(elements // num_pixels, 1))
    costs = [_some_mask_costs(kernels, queries, targets) for queries in parts]
    focal, overlap, predicted = (torch.cat(parts) for parts in zip(*costs))
    dice = 1 - (2 * overlap + 1) / (predicted + targets.sum(1) + 1)
    return focal / num_pixels, dice


def _some_mask_costs(kernels: Any, mask_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over pixels: the focal cost (n,G), p t (n,G) and p (n,1) of (n, pixels) logits."""
    contrast, probs, (sum_negative, sum_probs) = _pairwise_terms(kernels, mask_logits)
    focal = (contrast @ targets.mT).add_(sum_negative[:, None], alpha=_NEGATIVE_WEIGHT).mul_(FOCAL_ALPHA)
    return focal, probs @ targets.mT, sum_probs[:, None]


def _pairwise_terms(kernels: Any, mask_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, pixels) positive minus negative cost over alpha, and p; (2,n) sums of the unweighted negative cost, and p."""
    if kernels is not None:
        return _pairwise_terms_compiled(kernels, mask_logits.detach().contiguous())
    probs, softplus = mask_logits.sigmoid(), F.softplus(mask_logits)
    negative = probs.square().mul_(softplus)
    positive = (1 - probs).square_().mul_(softplus.sub_(mask_logits))
    return positive.sub_(negative, alpha=_NEGATIVE_WEIGHT), probs, torch.stack([negative.sum(1), probs.sum(1)])


def _pairwise_terms_compiled(kernels: Any, mask_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    contrast, probs = torch.empty_like(mask_logits), torch.empty_like(mask_logits)
    sums = mask_logits.new_empty(2, len(mask_logits))
    arrays = (tensor.numpy() for tensor in (mask_logits, contrast, probs, sums))
    kernels.write_pairwise_terms(*arrays, np.float32(_NEGATIVE_WEIGHT))
    return contrast, probs, sums
