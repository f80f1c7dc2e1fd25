"""The set prediction loss: functional (focal and dice), matcher, criterion."""

from .criterion import SetCriterion, masks_per_batch
from .functional import dice_loss, pairwise_mask_costs, sigmoid_focal_loss
from .matcher import HungarianMatcher

__all__ = [
    "HungarianMatcher",
    "SetCriterion",
    "dice_loss",
    "masks_per_batch",
    "pairwise_mask_costs",
    "sigmoid_focal_loss",
]
