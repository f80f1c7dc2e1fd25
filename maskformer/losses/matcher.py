"""HungarianMatcher: the cheapest one-to-one assignment of queries to targets, image by image, layer by layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from maskformer.structures import MaskPredictions, Match, Targets

from .functional import without_autocast
from .matched_masks import DenseMasks
from .points import SampledMasks


class HungarianMatcher(nn.Module):
    """Match predictions with targets by class, mask and dice cost.

    Args:
        class_weight: of minus the class probability.
        mask_weight: of the pairwise mask cost: focal, or of sampled points binary cross-entropy.
        dice_weight: of the pairwise dice cost.

    Source: DETR (arXiv 2005.12872), section 3.1; MaskFormer, section 3.2 (masks instead of boxes).
    """

    def __init__(self, *, class_weight: float = 1.0, mask_weight: float = 20.0, dice_weight: float = 1.0):
        super().__init__()
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    @torch.no_grad()
    def forward(
        self, predictions: MaskPredictions, targets: list[Targets], masks: DenseMasks | SampledMasks | None = None
    ) -> list[list[Match]]:
        """Match every layer and image.

        Args:
            predictions: L layers of B images.
            targets: B images; masks padded to the network input.
            masks: what compares masks; ``DenseMasks`` where None.

        Returns:
            ``matches[layer][image]``, on the CPU.
        """
        costs = self.costs(predictions, targets, masks).cpu()  # SciPy needs host memory: the one sync of the step
        return [
            [solve_assignment(image_cost[:, : len(target.labels)]) for image_cost, target in zip(layer_costs, targets)]
            for layer_costs in costs
        ]

    @torch.no_grad()
    def costs(
        self, predictions: MaskPredictions, targets: list[Targets], masks: DenseMasks | SampledMasks | None = None
    ) -> Tensor:
        """The weighted cost of every pair.

        Args:
            predictions: L layers of B images.
            targets: B images.
            masks: see ``forward``.

        Returns:
            (L,B,Q,G) float32 or float64 on the predictions' device; G is the largest of the batch, images with fewer
            targets have zeros beyond theirs.
        """
        masks = masks or DenseMasks()
        most_targets = max(len(target.labels) for target in targets)
        with without_autocast(predictions.mask_logits) as precise:
            class_probs = precise(predictions.class_logits).softmax(-1)
            costs = class_probs.new_zeros(*class_probs.shape[:3], most_targets)
            for image, target in enumerate(targets):
                mask_cost, dice_cost = masks.costs(image, precise(predictions.mask_logits[:, image]), target.masks)
                class_cost = -class_probs[:, image][..., target.labels]
                total = self.class_weight * class_cost + self.mask_weight * mask_cost + self.dice_weight * dice_cost
                costs[:, image, :, : len(target.labels)] = total
        return costs


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
