"""Panoptic inference: each pixel belongs to one segment, or to none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from maskformer.kernels import for_each
from maskformer.structures import PanopticResult

from .resize import Geometry, plan_bands

_NOBODY = -1
_BAND_BYTES = 2**18  # of a band of one mask: a core keeps the few that it works on in its cache


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: Geometry,
    *,
    thing_class_ids: Collection[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    within_masks: bool = False,
) -> PanopticResult:
    """Assign each pixel to the kept query with the largest score * sigmoid(mask), then drop hidden segments.

    Only kept queries are upsampled, one at a time and on a CPU in bands of rows, so memory does not grow with Q.

    Args:
        class_logits: (Q,K+1) logits.
        mask_logits: (Q,h,w) logits.
        geometry: the image's sizes.
        thing_class_ids: classes whose segments stay apart; segments of one stuff class merge.
        object_mask_threshold: a query is kept if its best class is not "no object" and more probable than this.
        overlap_threshold: a segment is dropped if its visible fraction is below this.
        within_masks: a pixel where sigmoid(mask) of its query is below 0.5 stays void, as in Mask2Former; the fraction
            counts it nevertheless.

    Source: MaskFormer, section 3.4, "General inference".
    """
    kept = kept_queries(class_logits, object_mask_threshold)
    scores, classes = class_logits.softmax(-1)[kept].max(-1)
    kept_masks = mask_logits[kept]

    def mask_logits_in(slot: int, rows: range) -> Tensor:
        mask = kept_masks[slot : slot + 1]
        if geometry.keeps_size:
            return geometry.upsample_rows(mask, rows)[0]
        return geometry.restore(geometry.upsample(mask))[0]  # whole: a band's values would differ in the last bit

    height, width = geometry.output_size
    in_bands = geometry.keeps_size and scores.device.type == "cpu"
    band_bytes = geometry.bytes_at_once(_BAND_BYTES, scores.device)
    bands = plan_bands(height, width * scores.element_size(), band_bytes) if in_bands else [range(height)]
    owner, visible_area, predicted_area = assign_pixels(
        scores, mask_logits_in, geometry.output_size, bands, within_masks=within_masks
    )
    segment_of_slot, segments_info = merge_segments(
        classes.tolist(), visible_area.tolist(), predicted_area.tolist(), thing_class_ids, overlap_threshold
    )
    # The last entry serves pixels of nobody: index -1.
    segment_ids = torch.tensor([*segment_of_slot, 0], dtype=torch.int32, device=owner.device)
    return PanopticResult(segment_ids[owner.long()], segments_info, _best_scores(scores.tolist(), segment_of_slot))


def kept_queries(class_logits: Tensor, object_mask_threshold: float) -> Tensor:
    """Indices (N,) of queries whose best class is not "no object" and whose probability exceeds the threshold."""
    scores, classes = class_logits.softmax(-1).max(-1)
    is_object = classes != class_logits.shape[-1] - 1
    return (is_object & (scores > object_mask_threshold)).nonzero()[:, 0]


def assign_pixels(
    scores: Tensor,
    mask_logits_in: Callable[[int, range], Tensor],
    size: tuple[int, int],
    bands: Iterable[range],
    *,
    within_masks: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A running arg-max of score * sigmoid(mask) over kept queries; on ties the first wins.

    Args:
        scores: (N,) of the kept queries.
        mask_logits_in: slot 0..N-1 and some rows -> its (rows,width) logits there.
        size: (height, width).
        bands: the rows, in parts.
        within_masks: see ``panoptic_inference``.

    Returns:
        ``owner`` (height,width) int32, the slot of each pixel or -1 where there is none; ``visible_area`` (N,) pixels
        won, 0 where none of them is owned; ``predicted_area`` (N,) pixels where sigmoid(mask) >= 0.5.
    """
    owner = torch.full(size, _NOBODY, dtype=torch.int32, device=scores.device)
    bands = list(bands)
    areas = torch.zeros(3, len(bands), len(scores), dtype=torch.int64, device=scores.device)
    visible_area, predicted_area, owned_area = areas

    def assign(index: int) -> None:
        rows = bands[index]
        band = owner[rows.start : rows.stop]
        best = torch.full_like(band, -1.0, dtype=scores.dtype)
        is_inside = torch.ones_like(band, dtype=torch.bool)  # its owner's mask
        for slot in range(len(scores)):
            mask_probs = mask_logits_in(slot, rows).sigmoid()
            is_predicted = mask_probs >= 0.5
            predicted_area[index, slot] = is_predicted.count_nonzero()
            weighted = mask_probs.mul_(scores[slot])
            wins = weighted > best
            band.masked_fill_(wins, slot)
            is_inside = torch.where(wins, is_predicted, is_inside) if within_masks else is_inside
            best = torch.maximum(best, weighted)
        for slot in range(len(scores)):
            is_won = band == slot
            visible_area[index, slot] = is_won.count_nonzero()
            if within_masks:
                owned_area[index, slot] = (is_won & is_inside).count_nonzero()
        if within_masks:
            band.masked_fill_(~is_inside, _NOBODY)

    for_each(assign, range(len(bands)), scores.device)
    visible_area, predicted_area, owned_area = areas.sum(1)
    return owner, visible_area * (owned_area > 0) if within_masks else visible_area, predicted_area


def _best_scores(scores: list[float], segment_of_slot: list[int]) -> list[float]:
    """The class probability of each segment 1, 2, ...; of stuff that several queries make up, the highest."""
    best: dict[int, float] = {}
    for score, segment_id in zip(scores, segment_of_slot):
        best[segment_id] = max(score, best.get(segment_id, 0.0))
    return [best[segment_id] for segment_id in sorted(best.keys() - {0})]


def merge_segments(
    classes: list[int],
    visible_area: list[int],
    predicted_area: list[int],
    thing_class_ids: Collection[int],
    overlap_threshold: float,
) -> tuple[list[int], list[dict[str, Any]]]:
    """Number the segments that stay, in order of queries; one number for all segments of a stuff class.

    Args:
        classes: class of each kept query.
        visible_area: pixels that it owns.
        predicted_area: pixels that it claims.
        thing_class_ids: see ``panoptic_inference``.
        overlap_threshold: see ``panoptic_inference``.

    Returns:
        The segment id of each kept query, 0 where it is dropped; and ``segments_info``.
    """
    segment_ids: list[int] = []
    segments_info: list[dict[str, Any]] = []
    stuff_ids: dict[int, int] = {}
    for category, visible, predicted in zip(classes, visible_area, predicted_area):
        if visible == 0 or predicted == 0 or visible / predicted < overlap_threshold:
            segment_ids.append(0)
            continue
        is_thing = category in thing_class_ids
        if not is_thing and category in stuff_ids:
            segment_ids.append(stuff_ids[category])
            continue
        segment_id = len(segments_info) + 1
        segments_info.append({"id": segment_id, "isthing": is_thing, "category_id": category})
        segment_ids.append(segment_id)
        if not is_thing:
            stuff_ids[category] = segment_id
    return segment_ids, segments_info
