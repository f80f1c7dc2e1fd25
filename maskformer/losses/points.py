"""Masks compared at sampled points: the losses and costs of Mask2Former, a sixteenth of the pixels and less.

P is the number of points. A point is (x,y), 0..1 of the width and of the height; a mask's value there is interpolated
bilinearly, and 0 beyond its edge. Source: Mask2Former (arXiv 2112.01527), section 3.3; PointRend (arXiv 1912.08193),
section 3.1, of the uncertain points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskformer.kernels import find_kernels, for_each
from maskformer.structures import MaskPredictions, Targets

from .functional import compare_in_threads, dice_loss, pixels_at_once, sigmoid_ce_loss


@dataclass(frozen=True)
class PointMasks:
    """Masks are compared at random points: costs at uniform ones, losses at those where a prediction is least certain.

    Attributes:
        num_points: P.
        oversample_ratio: so many times P are drawn, of which the uncertain ones are chosen.
        importance_ratio: the share of P that is chosen so, 0..1; the others are uniform.
        last_layer_first: whose points are drawn first: Mask2Former's way; False: EoMT's, layer by layer.
    """

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75
    last_layer_first: bool = True

    def prepare(self, predictions: MaskPredictions, targets: list[Targets]) -> SampledMasks:
        """Draw the points of a step.

        They are drawn in the order of the released models, so that a seed gives their losses: for the last layer (with
        ``last_layer_first``), then for the first, the second, ...: the points of costs, image by image; candidates of
        all matched pairs; uniform points of all matched pairs.

        Args:
            predictions: L layers of B images.
            targets: B images.
        """
        num_layers, _, num_queries = predictions.class_logits.shape[:3]
        device = predictions.mask_logits.device
        num_pairs = sum(min(num_queries, len(target.labels)) for target in targets)
        num_uniform = self.num_points - int(self.importance_ratio * self.num_points)
        num_candidates = int(self.oversample_ratio * self.num_points)
        points = SampledMasks(
            torch.empty(num_layers, len(targets), self.num_points, 2, device=device),
            torch.empty(num_layers, num_pairs, num_candidates, 2, device=device),
            torch.empty(num_layers, num_pairs, num_uniform, 2, device=device),
        )
        layers = list(range(num_layers))
        for layer in (layers[-1:] + layers[:-1]) if self.last_layer_first else layers:
            for image in range(len(targets)):
                points.of_costs[layer, image] = torch.rand(1, self.num_points, 2, device=device)[0]
            points.candidates[layer] = torch.rand(num_pairs, num_candidates, 2, device=device)
            points.uniform[layer] = torch.rand(num_pairs, num_uniform, 2, device=device)
        return points


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
        parts = [x.split(_layers_at_once(len(mask_logits[0]), points)) for x in (mask_logits, points)]
        costs = compare_in_threads(_pairwise_costs, [(*part, masks) for part in zip(*parts)], points.device)
        return costs[0], costs[1]

    def losses(self, mask_logits: Tensor, masks: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """As ``DenseMasks.losses``: binary cross-entropy and dice."""
        _, images, queries, rows = pairs
        # Points were drawn for pairs in the order of images and queries; pairs are in the order of their targets.
        places = (images * (queries.max() + 1 if queries.numel() else 1) + queries).argsort(1).argsort(1)
        at_once = _layers_at_once(len(mask_logits), self.candidates[:, 0] if len(mask_logits) else self.uniform)
        of_layers = (mask_logits.transpose(0, 1), rows, places, self.candidates, self.uniform)
        parts = [self._compare(masks, *part) for part in zip(*(x.split(at_once) for x in of_layers))]
        losses = [
            (sigmoid_ce_loss(logits, targets, 1), dice_loss(logits, targets, 1))
            for part in parts
            for logits, targets in zip(*part)
        ]
        mask_losses, dice_losses = (torch.stack(some) for some in zip(*losses))
        return mask_losses, dice_losses

    def _compare(
        self, masks: Tensor, mask_logits: Tensor, rows: Tensor, places: Tensor, candidates: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and targets at the points of losses of some layers: of (l,N,h,w) logits two (l,N,P)."""
        layers = torch.arange(len(places), device=places.device)[:, None]
        maps = mask_logits.flatten(0, 1)[:, None]
        drawn = [points[layers, places].flatten(0, 1) for points in (candidates, uniform)]
        points = choose_points(maps, drawn[0], drawn[1], self.of_costs.shape[2])
        targets = sample_masks(masks, rows.flatten(), points.to(maps.dtype))
        logits = sample(maps, points)[:, 0]
        return logits.unflatten(0, rows.shape), targets.unflatten(0, rows.shape)


def _layers_at_once(masks: int, points: Tensor) -> int:
    """How many of L layers to look at together, with so many masks at (L,P,2) points each."""
    return max(pixels_at_once(points.device) // max(masks * points.shape[1], 1), 1)


def _pairwise_costs(mask_logits: Tensor, points: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Two (l,Q,G) of some layers' (l,Q,h,w) logits at (l,P,2) points, and (G,H,W) masks."""
    logits = sample(mask_logits, points)  # (l,Q,P)
    rows = torch.arange(len(masks), device=masks.device).expand(len(points), -1)
    of_masks = points.to(logits.dtype)[:, None].expand(-1, len(masks), -1, -1)
    targets = sample_masks(masks, rows.flatten(), of_masks.flatten(0, 1)).unflatten(0, rows.shape)  # (l,G,P)
    probs = logits.sigmoid()
    # With softplus(x) = -log(1 - p): what a point costs is softplus(x) - x t.
    cross_entropy = F.softplus(logits).sum(-1, keepdim=True) - logits @ targets.mT
    overlap, total = probs @ targets.mT, probs.sum(-1)[..., None] + targets.sum(-1)[:, None]
    return cross_entropy / points.shape[1], 1 - (2 * overlap + 1) / (total + 1)


@torch.no_grad()
def choose_points(mask_logits: Tensor, candidates: Tensor, uniform: Tensor, num_points: int) -> Tensor:
    """The points of losses: the least certain of (N,candidates,2) in (N,1,h,w) logits, then uniform ones: (N,P,2)."""
    uncertainty = -sample(mask_logits, candidates)[:, 0].abs()
    chosen = uncertainty.topk(num_points - uniform.shape[1], dim=1, sorted=False).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), uniform], dim=1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Values of (N, maps, rows, columns) at (N,P,2) points, bilinear: (N,maps,P)."""
    if 0 in maps.shape:
        return maps.flatten(2).sum(2, keepdim=True) * maps.new_zeros(points.shape[1])  # with a gradient, of zeros
    kernels = find_kernels(maps, points)
    if kernels is not None:
        return _sample_compiled(kernels, maps.detach().unbind(), points)
    grid = 2 * points.to(maps.dtype)[:, None] - 1
    return F.grid_sample(maps, grid, align_corners=False)[:, :, 0]


@torch.no_grad()
def sample_masks(masks: Tensor, rows: Tensor, points: Tensor) -> Tensor:
    """Values of some masks, bilinear, without numbers for all their pixels.

    Args:
        masks: (G,H,W) bool.
        rows: (N,) int64, which of them.
        points: (N,P,2).

    Returns:
        (N,P), of the points' type.
    """
    kernels = find_kernels(points)
    if kernels is not None:
        return _sample_compiled(kernels, [masks[row : row + 1] for row in rows.tolist()], points)[:, 0]
    height, width = masks.shape[1:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    total = torch.zeros_like(x)
    for column, column_share in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, row_share in ((top, 1 - (y - top)), (top + 1, y - top)):
            is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            values = masks.flatten()[rows[:, None] * (height * width) + pixel]
            total += column_share * row_share * (values * is_inside)
    return total


def _sample_compiled(kernels: Any, maps: Sequence[Tensor], points: Tensor) -> Tensor:
    """(N,maps,P) of N times (maps, rows, columns)."""
    sampled = points.new_empty(len(points), len(maps[0]) if len(maps) else 1, points.shape[1])
    points_array, output = points.contiguous().numpy(), sampled.numpy()

    def sample_one(index: int) -> None:
        kernels.sample_maps(maps[index].contiguous().numpy(), points_array[index], output[index])

    for_each(sample_one, range(len(points)), points.device)
    return sampled
