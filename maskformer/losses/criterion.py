"""SetCriterion: match queries with targets, then a class loss on every query and mask losses on matched ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from maskformer.structures import MaskPredictions, Match, Targets

from .functional import without_autocast
from .matched_masks import DenseMasks
from .matcher import HungarianMatcher
from .points import PointMasks

logger = logging.getLogger(__name__)


class SetCriterion(nn.Module):
    """The loss of a set of predictions, on every supervised layer.

    Args:
        num_classes: K.
        matcher: pairs queries with targets.
        no_object_weight: weight of "no object" in the cross-entropy; classes weigh 1.
        class_weight: of ``loss_ce``.
        mask_weight: of ``loss_mask``.
        dice_weight: of ``loss_dice``.
        masks: how masks are compared: pixel by pixel (focal), or at sampled points (binary cross-entropy).
        most_masks: mask losses are divided by the number of targets, of which an image counts at most so many. EoMT:
            the number of queries, so that matched pairs are counted; None, as MaskFormer and Mask2Former: all.

    Attributes:
        num_masks: what mask losses are divided by; None: the batch's own number. See ``masks_per_batch``.

    Source: MaskFormer, section 3.2, equation 2; deep supervision as in DETR, section 3.2.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        matcher: HungarianMatcher,
        no_object_weight: float = 0.1,
        class_weight: float = 1.0,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        masks: DenseMasks | PointMasks | None = None,
        most_masks: int | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.masks = masks or DenseMasks()
        self.most_masks = most_masks
        self.num_masks: float | None = None
        self.matcher = matcher
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self._told_of_queries = False
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = no_object_weight
        self.register_buffer("empty_weight", class_weights)  # named as in the released weights

    def forward(self, predictions: MaskPredictions, targets: list[Targets]) -> dict[str, Tensor]:
        """Compute the weighted losses.

        Args:
            predictions: L layers of B images.
            targets: B images; masks padded to the network input, on the predictions' device.

        Returns:
            ``loss_ce``, ``loss_mask`` and ``loss_dice`` of the last layer; those of earlier layers end in ``_0``,
            ``_1``, ... Each is a scalar already multiplied by its weight; NaN, as its gradient, where a cost of
            matching is not finite.
        """
        self._compare_numbers(predictions.class_logits.shape[2], max(len(target.labels) for target in targets))
        comparison = self.masks.prepare(predictions, targets)
        matches = self.matcher(predictions, targets, comparison)
        self._pairs_on_host = _index_pairs(matches, targets)  # kept: the device may read it when this has returned
        pairs = self._pairs_on_host.to(predictions.mask_logits.device, non_blocking=True)
        pairs_of_image = [len(match.query_indices) for match in matches[0]]
        layers, images, queries, _ = pairs.mT
        matched = predictions.masks_of_pairs(layers, images, queries, pairs_of_image)  # as precise as what was matched
        with without_autocast(predictions.mask_logits) as precise:
            class_losses = self._class_losses(precise(predictions.class_logits), pairs, targets)
            masks = torch.cat([target.masks for target in targets])
            mask_losses, dice_losses = comparison.losses(precise(matched), masks, pairs)
            num_masks = self._average_num_masks([len(target.labels) for target in targets], mask_losses.device)
        losses = {
            "loss_ce": self.class_weight * class_losses,
            "loss_mask": self.mask_weight * mask_losses / num_masks,
            "loss_dice": self.dice_weight * dice_losses / num_masks,
        }
        if not all(match.has_finite_costs for layer in matches for match in layer):
            losses = {name: values * torch.nan for name, values in losses.items()}
        return _name_by_layer(losses)

    def _compare_numbers(self, num_queries: int, most_targets: int) -> None:
        """Say once that an image has more segments than there are queries."""
        if most_targets > num_queries and not self._told_of_queries:
            self._told_of_queries = True
            logger.warning(
                "An image has %d segments, the model %d queries: the %d that fit worst stay without one, and so with "
                "every such image. Raise MODEL.MASK_FORMER.NUM_OBJECT_QUERIES.",
                most_targets, num_queries, most_targets - num_queries,
            )  # fmt: skip

    def _class_losses(self, class_logits: Tensor, pairs: Tensor, targets: list[Targets]) -> Tensor:
        """(L,): cross-entropy of (L,B,Q,K+1) logits over all queries of a layer, a weighted mean."""
        layers, images, queries, rows = pairs
        labels = torch.cat([target.labels for target in targets])
        target_classes = torch.full(class_logits.shape[:3], self.num_classes, device=class_logits.device)
        target_classes[layers, images, queries] = labels[rows]
        weight = self.empty_weight.to(class_logits.dtype)
        return torch.stack(
            [
                F.cross_entropy(layer_logits.flatten(0, 1), layer_classes.flatten(), weight)
                for layer_logits, layer_classes in zip(class_logits, target_classes)
            ]
        )

    def count_masks(self, masks_of_images: Iterable[int]) -> int:
        """What mask losses are divided by, where images have so many targets: see ``most_masks``."""
        return sum(number if self.most_masks is None else min(number, self.most_masks) for number in masks_of_images)

    def _average_num_masks(self, masks_of_images: list[int], device: torch.device) -> Tensor:
        """The number of target masks a process, averaged over all processes and at least 1; a scalar tensor."""
        num_masks = self.count_masks(masks_of_images) if self.num_masks is None else self.num_masks
        average = torch.full((), float(num_masks), device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(average)
            average = average / comm.get_world_size()
        return average.clamp(min=1)


@contextmanager
def masks_per_batch(criterion: nn.Module | None, masks_of_images: Iterable[int], num_parts: int) -> Iterator[None]:
    """In the ``with`` block, mask losses are divided by the mean number of masks of parts, not by a batch's own.

    For parts of a batch whose gradients are accumulated: the sum of their losses is what as many processes would give.

    Args:
        criterion: a ``SetCriterion``; any other module, or None, knows no masks.
        masks_of_images: targets of each image of all parts, in this process.
        num_parts: into how many the images are divided.
    """
    if not isinstance(criterion, SetCriterion):
        yield
        return
    criterion.num_masks = criterion.count_masks(masks_of_images) / num_parts
    try:
        yield
    finally:
        criterion.num_masks = None


def _index_pairs(matches: list[list[Match]], targets: list[Targets]) -> Tensor:
    """(4,L,pairs) int64: layer, image and query of each matched pair, and its target's row in the batch's targets.

    Each layer matches as many pairs; they are in the order of their targets.
    """
    pairs_of_image = torch.tensor([len(match.query_indices) for match in matches[0]])
    targets_of_image = torch.tensor([len(target.labels) for target in targets])
    first_rows = targets_of_image.cumsum(0) - targets_of_image
    of_layers = [(_cat_indices(layer, "query_indices"), _cat_indices(layer, "target_indices")) for layer in matches]
    queries, rows = (torch.stack(indices) for indices in zip(*of_layers))
    layers = torch.arange(len(matches))[:, None].expand_as(queries)
    images = torch.arange(len(targets)).repeat_interleave(pairs_of_image).expand_as(queries)
    rows = rows + first_rows.repeat_interleave(pairs_of_image)
    pairs = torch.stack([layers, images, queries, rows])
    return pairs.gather(2, rows.argsort(1).expand_as(pairs))


def _cat_indices(matches: list[Match], name: str) -> Tensor:
    return torch.cat([getattr(match, name) for match in matches])


def _name_by_layer(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Spread (L,) losses: the last layer keeps the name, earlier ones get a suffix."""
    named = {name: values[-1] for name, values in losses.items()}
    for name, values in losses.items():
        named.update({f"{name}_{layer}": value for layer, value in enumerate(values[:-1])})
    return named
