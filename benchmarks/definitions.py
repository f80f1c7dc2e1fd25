"""The set prediction loss, inference and targets as they are defined: one formula a function, nothing made fast.

What the fast code must equal: 1e-4 relative in float32, 1e-9 in float64, label maps and panoptic ids identical. This is
the oracle of tests and the contender "definition" of the benchmark, and so uses nothing of losses, inference or data.
Letters are those of ``maskformer.structures``; P is a number of pixels, N one of masks.

Where two readings of a formula part:

- Ties: ``argmax`` gives a pixel to the first of equal queries. ``topk`` leaves the order of equal (query, class) pairs
  open.
- A pixel belongs to a mask where sigmoid(mask) >= 0.5 in panoptic inference, where mask > 0 in instance inference.
- Mask2Former's panoptic segments end where their masks do (``within_masks``), MaskFormer's where another's begins.
- Matching and losses are computed in float32 (or float64), whatever autocast and the predictions' type say.
- Mask losses are divided by the number of targets of the batch, matched or not, and by 1 where there are none.
- The weight of "no object" is a float32 number, as the released weights store it, in float64 too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from maskformer.structures import MaskPredictions, Match, PanopticResult, Targets

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
Size = tuple[int, int]


@dataclass(frozen=True)
class LossWeights:
    """What each loss, and each matching cost of the same name, is multiplied by.

    Attributes:
        of_class: cross-entropy; minus the class probability.
        of_mask: focal, or at points binary cross-entropy.
        of_dice: dice.
        of_no_object: "no object" within the cross-entropy, where classes weigh 1.
    """

    of_class: float = 1.0
    of_mask: float = 20.0
    of_dice: float = 1.0
    of_no_object: float = 0.1


# --- losses of pixels and masks (MaskFormer, section 3.2) ---


def focal_of_pixels(mask_logits: Tensor, is_inside: Tensor) -> Tensor:
    """Focal loss of each pixel: -alpha_t (1 - p_t)^gamma log(p_t), with p_t = p inside the target and 1 - p outside.

    Args:
        mask_logits: any shape.
        is_inside: bool, of a shape that broadcasts.

    Returns:
        As ``mask_logits``.

    Source: Lin et al., arXiv 1708.02002, equation 5.
    """
    logit_of_truth = torch.where(is_inside, mask_logits, -mask_logits)
    alpha = torch.where(is_inside, FOCAL_ALPHA, 1 - FOCAL_ALPHA).to(mask_logits.dtype)
    return -alpha * (1 - logit_of_truth.sigmoid()) ** FOCAL_GAMMA * F.logsigmoid(logit_of_truth)


def focal_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss of each mask: the mean over its pixels.

    Args:
        mask_logits: (N,P).
        masks: (N,P) bool.

    Returns:
        (N,).
    """
    return focal_of_pixels(mask_logits, masks).mean(1)


def dice_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Dice loss of each mask: 1 - (2 sum p t + 1) / (sum p + sum t + 1).

    Args:
        mask_logits: (N,P).
        masks: (N,P) bool, or 0..1 at points between pixels.

    Returns:
        (N,).

    Source: Milletari et al., arXiv 1606.04797, with 1 added above and below.
    """
    probs, masks = mask_logits.sigmoid(), masks.to(mask_logits.dtype)
    overlap = (probs * masks).sum(1)
    return 1 - (2 * overlap + 1) / (probs.sum(1) + masks.sum(1) + 1)


# --- matching (DETR, section 3.1) ---


def class_cost(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability that each query gives to each target's class.

    Args:
        class_logits: (Q,K+1).
        labels: (G,).

    Returns:
        (Q,G).
    """
    return -class_logits.softmax(-1)[:, labels]


def pairwise_focal_cost(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """``focal_loss`` of every query against every target.

    The sum over pixels of "what a pixel costs inside, where the target is, and what it costs outside, where it is not"
    is two products; anything else would hold Q x G x P values.

    Args:
        mask_logits: (Q,P).
        masks: (G,P) bool.

    Returns:
        (Q,G).
    """
    cost_inside = focal_of_pixels(mask_logits, torch.ones_like(mask_logits, dtype=torch.bool))
    cost_outside = focal_of_pixels(mask_logits, torch.zeros_like(mask_logits, dtype=torch.bool))
    inside = masks.to(mask_logits.dtype)
    return (cost_inside @ inside.T + cost_outside @ (1 - inside).T) / mask_logits.shape[1]


def pairwise_dice_cost(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """``dice_loss`` of every query against every target.

    Args:
        mask_logits: (Q,P).
        masks: (G,P) bool, or 0..1.

    Returns:
        (Q,G).
    """
    probs, masks = mask_logits.sigmoid(), masks.to(mask_logits.dtype)
    overlap = probs @ masks.T
    return 1 - (2 * overlap + 1) / (probs.sum(1)[:, None] + masks.sum(1)[None, :] + 1)


def matching_cost(class_logits: Tensor, mask_logits: Tensor, target: Targets, weights: LossWeights) -> Tensor:
    """The weighted cost of every pair of one image and layer.

    Args:
        class_logits: (Q,K+1).
        mask_logits: (Q,h,w).
        target: of the image; its masks are brought to (h,w) by nearest neighbour.
        weights: see ``LossWeights``.

    Returns:
        (Q,G).
    """
    masks = F.interpolate(target.masks[:, None].to(mask_logits.dtype), mask_logits.shape[-2:], mode="nearest")[:, 0]
    pixels, masks = mask_logits.flatten(1), masks.flatten(1) > 0
    return (
        weights.of_class * class_cost(class_logits, target.labels)
        + weights.of_mask * pairwise_focal_cost(pixels, masks)
        + weights.of_dice * pairwise_dice_cost(pixels, masks)
    )


@torch.no_grad()
def match(class_logits: Tensor, mask_logits: Tensor, target: Targets, weights: LossWeights) -> Match:
    """The assignment of queries to targets of least total cost, of one image and layer; arguments as above."""
    return assign(matching_cost(class_logits, mask_logits, target, weights))


def assign(cost: Tensor) -> Match:
    """The assignment of least total cost, of (Q,G) costs."""
    query_indices, target_indices = linear_sum_assignment(cost.cpu().numpy())
    return Match(torch.as_tensor(query_indices), torch.as_tensor(target_indices))


# --- the set prediction loss (MaskFormer, equation 2) ---


def class_loss(
    class_logits: Tensor, targets: Sequence[Targets], matches: Sequence[Match], weights: LossWeights
) -> Tensor:
    """Cross-entropy over all queries, a mean weighted by the true class; who has no target is "no object".

    Args:
        class_logits: (B,Q,K+1) of one layer.
        targets: B images.
        matches: B images.
        weights: see ``LossWeights``.

    Returns:
        Scalar.
    """
    no_object = class_logits.shape[-1] - 1
    classes = torch.full(class_logits.shape[:2], no_object, dtype=torch.int64, device=class_logits.device)
    for image, (target, pairs) in enumerate(zip(targets, matches)):
        classes[image, pairs.query_indices] = target.labels[pairs.target_indices]
    class_weights = torch.ones(no_object + 1, dtype=torch.float32, device=class_logits.device)
    class_weights[no_object] = weights.of_no_object
    return F.cross_entropy(class_logits.flatten(0, 1), classes.flatten(), class_weights.to(class_logits.dtype))


def mask_losses(mask_logits: Tensor, targets: Sequence[Targets], matches: Sequence[Match]) -> tuple[Tensor, Tensor]:
    """Focal and dice of matched pairs, upsampled to the targets' size; each summed and divided by the targets' number.

    Args:
        mask_logits: (B,Q,h,w) of one layer.
        targets: B images with masks (G,H,W).
        matches: B images.

    Returns:
        Two scalars.
    """
    predicted = torch.cat([mask_logits[image, pairs.query_indices] for image, pairs in enumerate(matches)])
    masks = torch.cat([target.masks[pairs.target_indices] for target, pairs in zip(targets, matches)])
    upsampled = F.interpolate(predicted[:, None], masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    num_masks = max(sum(len(target.labels) for target in targets), 1)
    pixels, masks = upsampled.flatten(1), masks.flatten(1)
    return focal_loss(pixels, masks).sum() / num_masks, dice_loss(pixels, masks).sum() / num_masks


def set_losses(
    predictions: MaskPredictions, targets: Sequence[Targets], weights: LossWeights | None = None
) -> dict[str, Tensor]:
    """Match and compare every layer by itself.

    Args:
        predictions: L layers of B images.
        targets: B images.
        weights: the defaults of the released models where None.

    Returns:
        ``loss_ce``, ``loss_mask`` and ``loss_dice`` of the last layer, those of layer l before it with ``_l`` appended;
        each already multiplied by its weight.
    """
    weights = weights or LossWeights()
    losses: dict[str, Tensor] = {}
    num_layers = len(predictions.class_logits)
    for layer in range(num_layers):
        suffix = "" if layer == num_layers - 1 else f"_{layer}"
        with torch.autocast(predictions.mask_logits.device.type, enabled=False):
            class_logits = at_least_float32(predictions.class_logits[layer])
            mask_logits = at_least_float32(predictions.mask_logits[layer])
            matches = [match(*of_image, weights) for of_image in zip(class_logits, mask_logits, targets)]
            focal, dice = mask_losses(mask_logits, targets, matches)
            losses[f"loss_ce{suffix}"] = weights.of_class * class_loss(class_logits, targets, matches, weights)
            losses[f"loss_mask{suffix}"] = weights.of_mask * focal
            losses[f"loss_dice{suffix}"] = weights.of_dice * dice
    return losses


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --- inference (MaskFormer, section 3.4) ---


def resize(maps: Tensor, size: Size) -> Tensor:
    """(N,H,W) values -> (N,*size), bilinear, align_corners False."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def restore(maps: Tensor, image_size: Size, output_size: Size) -> Tensor:
    """(N,H,W) values on the padded input -> (N,height,width): crop the padding, resize to the original size."""
    return resize(maps[:, : image_size[0], : image_size[1]], output_size)


def restore_masks(mask_logits: Tensor, padded_size: Size, image_size: Size, output_size: Size) -> Tensor:
    """(N,h,w) logits -> (N,height,width) logits: up to the padded input, crop the padding, resize."""
    return restore(resize(mask_logits, padded_size), image_size, output_size)


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Sum over queries of softmax(class), without "no object", times sigmoid(mask).

    Args:
        class_logits: (Q,K+1).
        mask_logits: (Q,height,width).

    Returns:
        (K,height,width) scores.
    """
    class_probs = class_logits.softmax(-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", class_probs, mask_logits.sigmoid())


def semantic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    *,
    restore_masks_first: bool = False,
) -> Tensor:
    """Semantic scores at the original size of an image.

    Args:
        class_logits: (Q,K+1).
        mask_logits: (Q,h,w).
        padded_size: the network input.
        image_size: of the image in it.
        output_size: the original's.
        restore_masks_first: masks, not scores, are brought to the original size.

    Returns:
        (K,height,width) scores.
    """
    if restore_masks_first:
        return semantic_scores(class_logits, restore_masks(mask_logits, padded_size, image_size, output_size))
    return restore(semantic_scores(class_logits, resize(mask_logits, padded_size)), image_size, output_size)


def panoptic_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    thing_class_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    within_masks: bool = False,
) -> PanopticResult:
    """Each pixel goes to the kept query of the largest score times sigmoid(mask); hidden segments are dropped.

    Args:
        class_logits: (Q,K+1).
        mask_logits: (Q,height,width), at the size of the answer.
        thing_class_ids: classes whose segments stay apart; segments of one stuff class merge.
        object_mask_threshold: a kept query's best class is not "no object" and has a larger probability than this.
        overlap_threshold: a segment is dropped where its pixels over those of sigmoid(mask) >= 0.5 are below this, or
            either are none.
        within_masks: a pixel where sigmoid(mask) of its query is below 0.5 is void, as in Mask2Former; it counts in the
            threshold, and a segment of such pixels alone is dropped.

    Returns:
        Ids from 1 in the order of queries; 0 is void.
    """
    scores, classes = class_logits.softmax(-1).max(-1)
    kept = (classes != class_logits.shape[-1] - 1) & (scores > object_mask_threshold)
    scores, classes, mask_probs = scores[kept], classes[kept], mask_logits.sigmoid()[kept]
    segment_map = torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=mask_logits.device)
    segments_info: list[dict[str, Any]] = []
    if len(scores) == 0:
        return PanopticResult(segment_map, segments_info)
    owner = (scores[:, None, None] * mask_probs).argmax(0)
    stuff_ids: dict[int, int] = {}
    for slot, category in enumerate(classes.tolist()):
        visible = owner == slot
        visible_area, predicted_area = visible.sum().item(), (mask_probs[slot] >= 0.5).sum().item()
        shown = visible & (mask_probs[slot] >= 0.5) if within_masks else visible
        if not shown.any() or predicted_area == 0 or visible_area / predicted_area < overlap_threshold:
            continue
        is_thing = category in thing_class_ids
        if is_thing or category not in stuff_ids:
            segments_info.append({"id": len(segments_info) + 1, "isthing": is_thing, "category_id": category})
            stuff_ids[category] = len(segments_info)
        segment_map[shown] = len(segments_info) if is_thing else stuff_ids[category]
    return PanopticResult(segment_map, segments_info)


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    **options: Any,
) -> PanopticResult:
    """``panoptic_segmentation`` of masks brought to the original size; sizes as in ``semantic_inference``."""
    mask_logits = restore_masks(mask_logits, padded_size, image_size, output_size)
    return panoptic_segmentation(class_logits, mask_logits, **options)


@dataclass(frozen=True)
class DetectedInstances:
    """N instances, best first.

    Attributes:
        masks: (N,height,width) bool.
        scores: (N,).
        classes: (N,) 0..K-1.
    """

    masks: Tensor
    scores: Tensor
    classes: Tensor


def detect_instances(
    class_logits: Tensor, mask_logits: Tensor, *, thing_class_ids: Collection[int] | None, max_instances: int
) -> DetectedInstances:
    """The most probable (query, class) pairs, each scored by its class and by how sure its mask is.

    Args:
        class_logits: (Q,K+1).
        mask_logits: (Q,height,width), at the size of the answer.
        thing_class_ids: classes that have instances; None: all.
        max_instances: N at most; pairs of other classes count too, and are then left out.

    Source: Mask2Former (arXiv 2112.01527), section 4.
    """
    class_probs = class_logits.softmax(-1)[:, :-1]
    class_scores, pairs = class_probs.flatten().topk(min(max_instances, class_probs.numel()))
    queries, classes = pairs // class_probs.shape[1], pairs % class_probs.shape[1]
    kept = [thing_class_ids is None or category in thing_class_ids for category in classes.tolist()]
    class_scores, queries, classes = class_scores[kept], queries[kept], classes[kept]
    masks = mask_logits[queries] > 0
    inside = (mask_logits[queries].sigmoid() * masks).sum((1, 2))
    scores = class_scores * inside / (masks.to(inside.dtype).sum((1, 2)) + 1e-6)
    order = scores.argsort(descending=True, stable=True)
    return DetectedInstances(masks[order], scores[order], classes[order])


def instance_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    **options: Any,
) -> DetectedInstances:
    """``detect_instances`` in masks brought to the original size; sizes as in ``semantic_inference``."""
    mask_logits = restore_masks(mask_logits, padded_size, image_size, output_size)
    return detect_instances(class_logits, mask_logits, **options)


# --- targets ---


def semantic_targets(label_map: np.ndarray, ignore_label: int) -> Targets:
    """One mask of each class present.

    Args:
        label_map: (H,W) integers, 0..K-1 or ``ignore_label``.
        ignore_label: belongs to no mask.

    Returns:
        Labels ascending.
    """
    classes = [int(value) for value in np.unique(label_map) if value != ignore_label]
    return stack_targets(classes, [label_map == value for value in classes], label_map.shape)


def panoptic_targets(pan_ids: np.ndarray, segments_info: Sequence[dict[str, Any]]) -> Targets:
    """One mask of each segment that is no crowd and has a pixel.

    Args:
        pan_ids: (H,W) integers, the ``id`` of a segment; any other value is void.
        segments_info: ``id``, ``category_id`` and, where it is one, ``iscrowd`` of each segment.

    Returns:
        In the order of ``segments_info``.
    """
    classes, masks = [], []
    for segment in segments_info:
        mask = pan_ids == segment["id"]
        if not segment.get("iscrowd", 0) and mask.any():
            classes.append(segment["category_id"])
            masks.append(mask)
    return stack_targets(classes, masks, pan_ids.shape)


def stack_targets(classes: Sequence[int], masks: Sequence[np.ndarray], size: Sequence[int]) -> Targets:
    """G classes and (H,W) bool masks as one image's targets, of no mask too."""
    stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)
    return Targets(torch.tensor(classes, dtype=torch.int64), torch.from_numpy(stacked))
