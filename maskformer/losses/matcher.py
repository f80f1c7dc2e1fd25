"""HungarianMatcher: the cheapest one-to-one assignment of queries to targets, image by image, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.kernels import for_each
from maskformer.structures import MaskPredictions, Match, Targets

from .chunks import elements_at_once
from .functional import pairwise_mask_costs
from .precision import without_autocast


class HungarianMatcher(nn.Module):
    """Match predictions with targets by class, focal and dice cost.

    Args:
        class_weight: of minus the class probability.
        mask_weight: of the pairwise focal cost.
        dice_weight: of the pairwise dice cost.

    Source: DETR (arXiv 2005.12872), section 3.1; MaskFormer, section 3.2 (masks instead of boxes).
    """

    def __init__(self, *, class_weight: float = 1.0, mask_weight: float = 20.0, dice_weight: float = 1.0):
        super().__init__()
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    @torch.no_grad()
    def forward(self, predictions: MaskPredictions, targets: list[Targets]) -> list[list[Match]]:
        """Match every layer and image.

        Args:
            predictions: L layers of B images.
            targets: B images; masks padded to the network input.

        Returns:
            ``matches[layer][image]``, on the CPU.
        """
        costs = self.costs(predictions, targets).cpu()  # SciPy needs host memory: the one sync of the step
        return [
            [solve_assignment(image_cost[:, : len(target.labels)]) for image_cost, target in zip(layer_costs, targets)]
            for layer_costs in costs
        ]

    @torch.no_grad()
    def costs(self, predictions: MaskPredictions, targets: list[Targets]) -> Tensor:
        """The weighted cost of every pair.

        Args:
            predictions: L layers of B images.
            targets: B images.

        Returns:
            (L,B,Q,G) float32 or float64 on the predictions' device; G is the largest of the batch, images with fewer
            targets have zeros beyond theirs.
        """
        class_logits, mask_logits = predictions.class_logits, predictions.mask_logits
        most_targets = max(len(target.labels) for target in targets)
        with without_autocast(mask_logits) as precise:
            costs = precise(class_logits).new_zeros(*class_logits.shape[:3], most_targets)
            for image, target in enumerate(targets):
                image_costs = self._image_costs(precise(class_logits[:, image]), precise(mask_logits[:, image]), target)
                costs[:, image, :, : len(target.labels)] = image_costs
        return costs

    def _image_costs(self, class_logits: Tensor, mask_logits: Tensor, target: Targets) -> Tensor:
        """(L,Q,G) from (L,Q,K+1) and (L,Q,h,w) logits of one image; the target masks are resized once."""
        masks = resize_masks(target.masks, mask_logits.shape[-2:]).flatten(1).to(mask_logits.dtype)
        class_cost = -class_logits.softmax(-1)[..., target.labels]
        pixels = mask_logits.flatten(2)
        layers_at_once = max(elements_at_once(pixels.device) // max(pixels[0].numel(), 1), 1)
        parts = pixels.split(layers_at_once)
        costs: list[tuple[Tensor, ...]] = [()] * len(parts)

        def compare(part: int) -> None:
            costs[part] = pairwise_mask_costs(parts[part].flatten(0, 1), masks)

        for_each(compare, range(len(parts)), pixels.device)
        focal_cost, dice_cost = (torch.cat(parts).view(class_cost.shape) for parts in zip(*costs))
        return self.class_weight * class_cost + self.mask_weight * focal_cost + self.dice_weight * dice_cost


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (G,H,W) bool masks to (G,*size) by nearest neighbour: what the released weights were trained with."""
    return F.interpolate(masks[:, None].byte(), tuple(size), mode="nearest")[:, 0].bool()


def solve_assignment(cost: Tensor) -> Match:
    """The assignment of least total cost; the smaller side is wholly assigned.

    Where a cost is NaN or infinite no assignment is the cheapest: the first queries get the targets in their order.

    Args:
        cost: (Q,G) on the CPU.
    """
    costs = cost.numpy()
    if not np.isfinite(costs).all():
        in_order = torch.arange(min(cost.shape))
        return Match(in_order, in_order, has_finite_costs=False)
    from scipy.optimize import linear_sum_assignment  # here: it takes longer to import than all of maskformer

    query_indices, target_indices = linear_sum_assignment(costs)
    return Match(torch.as_tensor(query_indices), torch.as_tensor(target_indices))
