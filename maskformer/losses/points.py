"""Masks compared at sampled points: the losses and costs of Mask2Former, a sixteenth of the pixels and less.

P is the number of points. A point is (x,y), 0..1 of the width and of the height; a mask's value there is interpolated
bilinearly, and 0 beyond its edge. Source: Mask2Former (arXiv 2112.01527), section 3.3; PointRend (arXiv 1912.08193),
section 3.1, of the uncertain points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.structures import MaskPredictions, Targets

from .functional import dice_loss, sigmoid_ce_loss


@dataclass(frozen=True)
class PointMasks:
    """Masks are compared at random points: costs at uniform ones, losses at those where a prediction is least certain.

    Attributes:
        num_points: P.
        oversample_ratio: so many times P are drawn, of which the uncertain ones are chosen.
        importance_ratio: the share of P that is chosen so, 0..1; the others are uniform.
    """

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75

    def prepare(self, predictions: MaskPredictions, targets: list[Targets]) -> SampledMasks:
        """Draw the points of a step.

        They are drawn in the order of the released models, so that a seed gives their losses: for the last layer, then
        for the first, the second, ...: the points of costs, image by image; candidates of all matched pairs; uniform
        points of all matched pairs.

        Args:
            predictions: L layers of B images.
            targets: B images.
        """
        num_layers, _, num_queries = predictions.class_logits.shape[:3]
        device = predictions.mask_logits.device
        num_pairs = sum(min(num_queries, len(target.labels)) for target in targets)
        num_uncertain = int(self.importance_ratio * self.num_points)
        candidates = int(self.oversample_ratio * self.num_points)
        drawn: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for layer in [num_layers - 1, *range(num_layers - 1)]:
            of_costs = [torch.rand(1, self.num_points, 2, device=device) for _ in targets]
            of_pairs = torch.rand(num_pairs, candidates, 2, device=device)
            uniform = torch.rand(num_pairs, self.num_points - num_uncertain, 2, device=device)
            drawn[layer] = torch.cat(of_costs), of_pairs, uniform
        return SampledMasks(*(torch.stack(some) for some in zip(*(drawn[layer] for layer in range(num_layers)))))


@dataclass(frozen=True)
class SampledMasks:
    """What compares the masks of one step, at its points.

    Attributes:
        of_costs: (L,B,P,2), each for all masks of a layer and image.
        candidates: (L,N,candidates,2), of each matched pair, in the order of images and in it of queries.
        uniform: (L,N,points,2), likewise.
    """

    of_costs: Tensor
    candidates: Tensor
    uniform: Tensor

    def costs(self, image: int, mask_logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """As ``DenseMasks.costs``: binary cross-entropy (a mean over points) and dice."""
        points = self.of_costs[:, image]
        logits = sample(mask_logits, points)  # (L,Q,P)
        targets = sample(masks.to(logits.dtype).expand(len(logits), -1, -1, -1), points)  # (L,G,P)
        probs = logits.sigmoid()
        # With softplus(x) = -log(1 - p): what a point costs is softplus(x) - x t.
        cross_entropy = F.softplus(logits).sum(-1, keepdim=True) - logits @ targets.mT
        overlap, total = probs @ targets.mT, probs.sum(-1)[..., None] + targets.sum(-1)[:, None]
        return cross_entropy / points.shape[1], 1 - (2 * overlap + 1) / (total + 1)

    def losses(self, mask_logits: Tensor, masks: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """As ``DenseMasks.losses``: binary cross-entropy and dice."""
        layers, images, queries, rows = pairs
        # Points were drawn for pairs in the order of images and queries; pairs are in the order of their targets.
        place = (images * (queries.max() + 1 if queries.numel() else 1) + queries).argsort(1).argsort(1)
        candidates, uniform = self.candidates[layers, place], self.uniform[layers, place]  # (L,N,points,2)
        losses = [
            self._layer_losses(of_layer[:, None], masks[of_rows][:, None].to(of_layer.dtype), *points)
            for of_layer, of_rows, *points in zip(mask_logits.unbind(1), rows, candidates, uniform)
        ]
        mask_losses, dice_losses = (torch.stack(some) for some in zip(*losses))
        return mask_losses, dice_losses

    def _layer_losses(
        self, mask_logits: Tensor, masks: Tensor, candidates: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of (N,1,h,w) logits and (N,1,H,W) masks of one layer: two scalars, summed over pairs."""
        points = choose_points(mask_logits, candidates, uniform, self.of_costs.shape[2])
        with torch.no_grad():
            targets = sample(masks, points)[:, 0]
        logits = sample(mask_logits, points)[:, 0]
        return sigmoid_ce_loss(logits, targets, 1), dice_loss(logits, targets, 1)


@torch.no_grad()
def choose_points(mask_logits: Tensor, candidates: Tensor, uniform: Tensor, num_points: int) -> Tensor:
    """The points of losses: the least certain of (N,candidates,2) in (N,1,h,w) logits, then uniform ones: (N,P,2)."""
    uncertainty = -sample(mask_logits, candidates)[:, 0].abs()
    chosen = uncertainty.topk(num_points - uniform.shape[1], dim=1).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), uniform], dim=1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Values of (N, maps, rows, columns) at (N,P,2) points, bilinear: (N,maps,P)."""
    if 0 in maps.shape:
        return maps.flatten(2).sum(2, keepdim=True) * maps.new_zeros(points.shape[1])  # with a gradient, of zeros
    grid = 2 * points.to(maps.dtype)[:, None] - 1
    return F.grid_sample(maps, grid, align_corners=False)[:, :, 0]
