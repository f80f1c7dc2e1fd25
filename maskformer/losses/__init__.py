"""The set prediction loss: functional, matcher, criterion; matched_masks (whole masks) and points (sampled ones)."""

from .criterion import SetCriterion, masks_per_batch
from .functional import dice_loss, pairwise_mask_costs, sigmoid_ce_loss, sigmoid_focal_loss
from .matched_masks import DenseMasks
from .matcher import HungarianMatcher
from .points import PointMasks

__all__ = [
    "DenseMasks",
    "HungarianMatcher",
    "PointMasks",
    "SetCriterion",
    "dice_loss",
    "masks_per_batch",
    "pairwise_mask_costs",
    "sigmoid_ce_loss",
    "sigmoid_focal_loss",
]
