"""Mask2Former's own formulas as they are defined, beside those of definitions.py: sampling, attention masks, losses.

Nothing of maskformer's losses or modeling is used here, and nothing is made fast. M is a number of attention heads, d
the width of one, P a number of points, N one of masks; a point is (x, y), 0..1 of the width and of the height.

Where two readings of a formula part:

- The centre of the first pixel is at half a pixel, not at 0 (align_corners False). Beyond the edge of a map is zero,
  so that half a pixel inside the edge its values begin to fade.
- A query may not attend where sigmoid(mask) < 0.5; a logit of exactly 0 forbids nothing.
- Candidates of one uncertainty: ``topk`` leaves open which are chosen.
- Which points are drawn first is part of the definition, for a seed to mean the same: see ``set_losses_at_points``.

Source: Mask2Former (arXiv 2112.01527), sections 3.2 and 3.3; Deformable DETR (arXiv 2010.04159), equation 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.structures import MaskPredictions, Targets

from .definitions import (
    LossWeights,
    Size,
    assign,
    at_least_float32,
    class_cost,
    class_loss,
    dice_loss,
    pairwise_dice_cost,
    resize,
)

# --- multi-scale deformable attention ---


def deformable_attention(value: Tensor, sizes: Sequence[Size], locations: Tensor, weights: Tensor) -> Tensor:
    """Each token's weighted sum of samples of all levels, head by head.

    Args:
        value: (B,cells,M,d), the cells of each level row by row, one level after another.
        sizes: (rows, columns) of each level.
        locations: (B,tokens,M,levels,points,2).
        weights: (B,tokens,M,levels,points).

    Returns:
        (B,tokens,M*d).
    """
    levels = value.split([rows * columns for rows, columns in sizes], dim=1)
    total = torch.zeros(())
    for level, (cells, size) in enumerate(zip(levels, sizes)):
        maps = cells.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, size)  # (B*M,d,rows,columns)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B*M,tokens,points,2)
        samples = F.grid_sample(maps, grid, align_corners=False)  # (B*M,d,tokens,points)
        of_level = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B*M,tokens,points)
        total = total + (samples * of_level[:, None]).sum(-1)
    return total.unflatten(0, (len(value), -1)).permute(0, 3, 1, 2).flatten(2)


# --- masked attention ---


def forbidden_cells(mask_logits: Tensor, size: Size) -> Tensor:
    """Where queries may not attend to a feature of that size, by their masks.

    Args:
        mask_logits: (B,Q,h,w).
        size: (rows, columns) of the feature.

    Returns:
        (B,Q,rows*columns) bool, True where a query may not.
    """
    resized = torch.stack([resize(of_image, size) for of_image in mask_logits])
    return (resized.sigmoid() < 0.5).flatten(2)


def open_forbidden_rows(forbidden: Tensor) -> Tensor:
    """A query that may attend to no cell may attend to all: (B,Q,cells) bool, as ``forbidden_cells`` gave."""
    return forbidden & ~forbidden.all(-1, keepdim=True)


# --- sampled points ---


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps at points.

    Args:
        maps: (N,rows,columns).
        points: (N,P,2).

    Returns:
        (N,P).
    """
    if len(maps) == 0:
        return maps.flatten(1).sum(1, keepdim=True).expand(0, points.shape[1])
    grid = 2 * points.to(maps.dtype)[:, None] - 1
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, 0]


def choose_points(mask_logits: Tensor, candidates: Tensor, uniform: Tensor, num_points: int) -> Tensor:
    """The points of each mask's losses: the candidates whose logits are nearest to 0, then the uniform ones.

    Args:
        mask_logits: (N,h,w).
        candidates: (N,candidates,2).
        uniform: (N,points,2).
        num_points: P.

    Returns:
        (N,P,2); candidates by falling uncertainty.
    """
    with torch.no_grad():
        uncertainty = -sample_points(mask_logits, candidates).abs()
    chosen = uncertainty.topk(num_points - uniform.shape[1], dim=1).indices
    return torch.cat([candidates.take_along_dim(chosen[..., None], dim=1), uniform], dim=1)


def cross_entropy_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy of each mask: the mean over its points of -t log(p) - (1 - t) log(1 - p).

    Args:
        mask_logits: (N,P).
        masks: (N,P), 0..1: a point may lie between pixels.

    Returns:
        (N,).
    """
    return -(masks * F.logsigmoid(mask_logits) + (1 - masks) * F.logsigmoid(-mask_logits)).mean(1)


def pairwise_cross_entropy_cost(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """``cross_entropy_loss`` of every query against every target: (Q,P) logits, (G,P) masks -> (Q,G)."""
    pairs = [cross_entropy_loss(mask_logits, mask.expand_as(mask_logits)) for mask in masks]
    return torch.stack(pairs, dim=1) if pairs else mask_logits.new_zeros(len(mask_logits), 0)


def matching_cost_at_points(
    class_logits: Tensor, mask_logits: Tensor, target: Targets, points: Tensor, weights: LossWeights
) -> Tensor:
    """The weighted cost of every pair of one image and layer.

    Args:
        class_logits: (Q,K+1).
        mask_logits: (Q,h,w).
        target: of the image; its masks keep their size.
        points: (P,2), the same for all masks.
        weights: see ``LossWeights``.

    Returns:
        (Q,G).
    """
    masks = target.masks.to(mask_logits.dtype)
    logits, masks = (sample_points(maps, points.expand(len(maps), -1, -1)) for maps in (mask_logits, masks))
    return (
        weights.of_class * class_cost(class_logits, target.labels)
        + weights.of_mask * pairwise_cross_entropy_cost(logits, masks)
        + weights.of_dice * pairwise_dice_cost(logits, masks)
    )


# --- the set prediction loss at points ---

RELEASED_WEIGHTS = LossWeights(of_class=2.0, of_mask=5.0, of_dice=5.0)


def set_losses_at_points(
    predictions: MaskPredictions,
    targets: Sequence[Targets],
    weights: LossWeights = RELEASED_WEIGHTS,
    *,
    num_points: int = 12544,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
    draw: Callable[..., Tensor] = torch.rand,
) -> dict[str, Tensor]:
    """Match and compare every layer by itself, the last first: that is the order in which points are drawn.

    Args:
        predictions: L layers of B images.
        targets: B images.
        weights: see ``LossWeights``.
        num_points: P.
        oversample_ratio: so many times P are candidates.
        importance_ratio: the share of P that is chosen of them.
        draw: gives uniform numbers 0..1 of a shape. Of a layer it is asked for (1,P,2) for each image, candidates
            (N,.,2) and uniform points (N,.,2) of the N matched pairs, in the order of images and in it of queries.

    Returns:
        As ``definitions.set_losses``.
    """
    num_layers, device = len(predictions.class_logits), predictions.mask_logits.device
    num_candidates, num_uncertain = int(oversample_ratio * num_points), int(importance_ratio * num_points)
    losses: dict[str, Tensor] = {}
    for layer in [num_layers - 1, *range(num_layers - 1)]:
        suffix = "" if layer == num_layers - 1 else f"_{layer}"
        with torch.autocast(device.type, enabled=False):
            class_logits = at_least_float32(predictions.class_logits[layer])
            mask_logits = at_least_float32(predictions.mask_logits[layer])
            with torch.no_grad():
                drawn = [draw(1, num_points, 2, device=device)[0] for _ in targets]
                costs = [
                    matching_cost_at_points(*of_image, weights)
                    for of_image in zip(class_logits, mask_logits, targets, drawn)
                ]
            matches = [assign(cost) for cost in costs]
            logits = torch.cat([of_image[pairs.query_indices] for of_image, pairs in zip(mask_logits, matches)])
            masks = torch.cat([target.masks[pairs.target_indices] for target, pairs in zip(targets, matches)])
            candidates = draw(len(logits), num_candidates, 2, device=device)
            uniform = draw(len(logits), num_points - num_uncertain, 2, device=device)
            points = choose_points(logits, candidates, uniform, num_points)
            logits, masks = sample_points(logits, points), sample_points(masks.to(logits.dtype), points)
            num_masks = max(sum(len(target.labels) for target in targets), 1)
            cross_entropy, dice = cross_entropy_loss(logits, masks), dice_loss(logits, masks)
            losses[f"loss_ce{suffix}"] = weights.of_class * class_loss(class_logits, targets, matches, weights)
            losses[f"loss_mask{suffix}"] = weights.of_mask * cross_entropy.sum() / num_masks
            losses[f"loss_dice{suffix}"] = weights.of_dice * dice.sum() / num_masks
    return losses
