"""Instance inference: the most probable (query, class) pairs, each with a binary mask and a score."""

from __future__ import annotations

from collections.abc import Collection

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .resize import Geometry


def instance_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: Geometry,
    *,
    thing_class_ids: Collection[int] | None,
    max_instances: int,
) -> Instances:
    """Detect instances.

    Args:
        class_logits: (Q,K+1) logits.
        mask_logits: (Q,h,w) logits.
        geometry: the image's sizes.
        thing_class_ids: classes that have instances; None: all.
        max_instances: N at most; pairs of other classes count too, and are then left out, as in the released models.

    Returns:
        ``Instances`` of the original size, best first: ``pred_masks`` (N,height,width) bool, ``pred_boxes`` around
        them (x0, y0, x1, y1), ``scores`` (N,) class probability times the mean mask probability inside the mask,
        ``pred_classes`` (N,) 0..K-1.

    Source: Mask2Former (arXiv 2112.01527), section 4, "Instance segmentation"; MaskFormer has no instance output.
    """
    class_scores, queries, classes = top_pairs(class_logits, thing_class_ids, max_instances)
    slots, masks, mask_scores = _masks_and_scores(mask_logits, queries, geometry)
    scores = class_scores * mask_scores[slots]
    order = scores.argsort(descending=True, stable=True)
    result = Instances(geometry.output_size)
    result.pred_masks = masks[slots[order]]
    result.pred_boxes = bounding_boxes(result.pred_masks)
    result.scores = scores[order]
    result.pred_classes = classes[order]
    return result


def top_pairs(
    class_logits: Tensor, thing_class_ids: Collection[int] | None, max_instances: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the most probable (query, class) pairs, those whose class has instances.

    Returns:
        Three (N,): class probability, query, class (0..K-1); most probable first.
    """
    class_probs = class_logits.softmax(-1)[:, :-1]
    num_classes = class_probs.shape[1]
    scores, pairs = class_probs.flatten().topk(min(max_instances, class_probs.numel()))
    queries, classes = torch.div(pairs, num_classes, rounding_mode="floor"), pairs % num_classes
    if thing_class_ids is None:
        return scores, queries, classes
    things = torch.tensor(sorted(thing_class_ids), dtype=torch.int64, device=classes.device)
    kept = torch.isin(classes, things)
    return scores[kept], queries[kept], classes[kept]


def _masks_and_scores(mask_logits: Tensor, queries: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """The masks of the queries in (N,) pairs, each upsampled once.

    Returns:
        (N,) int64, the slot of each pair's query; of the slots, the (slots,height,width) bool masks and the (slots,)
        mean probability inside each.
    """
    listed = queries.tolist()  # to the host once, not once a mask
    used = sorted(set(listed))
    slots = torch.tensor([used.index(query) for query in listed], dtype=torch.int64, device=queries.device)
    chosen = mask_logits[torch.tensor(used, dtype=torch.int64, device=queries.device)]
    masks = torch.empty((len(used), *geometry.output_size), dtype=torch.bool, device=mask_logits.device)
    scores = mask_logits.new_zeros(len(used))
    for start in range(0, len(used), at_once := _masks_at_once(mask_logits, geometry)):
        some = slice(start, start + at_once)
        logits = geometry.restore(geometry.upsample(chosen[some]))
        mask = torch.gt(logits, 0, out=masks[some])
        inside = (logits.sigmoid() * mask).flatten(1).sum(1)
        scores[some] = inside / (mask.flatten(1).count_nonzero(1).to(inside.dtype) + 1e-6)  # as the released models
    return slots, masks, scores


def _masks_at_once(mask_logits: Tensor, geometry: Geometry) -> int:
    height, width = geometry.padded_size
    limit = geometry.bytes_at_once(0, mask_logits.device)  # on a CPU one after the other: each leaves the cache anyway
    return max(limit // (height * width * mask_logits.element_size()), 1)


def bounding_boxes(masks: Tensor) -> Boxes:
    """Detectron2's ``BitMasks.get_bounding_boxes``, without asking the device of each mask where it is.

    Args:
        masks: (N,height,width) bool.

    Returns:
        (N,4) x0, y0, x1, y1 around the pixels of each mask; zeros where it has none.
    """
    spans = [_span(masks.any(axis)) for axis in (1, 2)]
    boxes = torch.stack([span[end] for end in (0, 1) for span in spans], dim=1)
    return Boxes(boxes.to(torch.float32))


def _span(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Of (N,length) bool: two (N,), the first index that is occupied and one past the last; zeros where none is."""
    length = occupied.shape[1]
    index = torch.arange(length, device=occupied.device)
    stop = torch.where(occupied, index + 1, 0).amax(1)
    return torch.where(occupied, index, length).amin(1).minimum(stop), stop
