"""Panoptic quality as panopticapi defines it, of arrays instead of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

VOID = 0  # the id of pixels that belong to no segment
_ID_BITS = 32

Pairs = dict[tuple[int, int], int]


@dataclass
class CategoryCounts:
    """What was matched of one category; counts of several images add up.

    Attributes:
        iou: sum of the IoU of matched segments.
        matched: segments in both label and prediction, with an IoU above 1/2.
        invented: predicted segments that match none.
        missed: labelled segments that match none.
    """

    iou: float = 0.0
    matched: int = 0
    invented: int = 0
    missed: int = 0

    def add(self, other: CategoryCounts) -> None:
        """Take those of another image."""
        self.iou += other.iou
        self.matched += other.matched
        self.invented += other.invented
        self.missed += other.missed


@dataclass(frozen=True)
class Quality:
    """Means over categories, in percent.

    Attributes:
        PQ: panoptic quality.
        SQ: segmentation quality.
        RQ: recognition quality.
        categories: how many were labelled or predicted; where there is none, the means are nan.
    """

    PQ: float
    SQ: float
    RQ: float
    categories: int


def count_pairs(label: np.ndarray, predicted: np.ndarray) -> Pairs:
    """Count the pixels of each pair of segments, run by run: neighbours mostly belong to the same two.

    Args:
        label: (height,width) ids from 0 to 2^31 - 1.
        predicted: likewise.

    Returns:
        (label's id, prediction's id) -> pixels, in rising order.
    """
    label, predicted = label.ravel(), predicted.ravel()
    changes = (label[1:] != label[:-1]) | (predicted[1:] != predicted[:-1])
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(starts, append=label.size)
    codes = label[starts].astype(np.int64) << _ID_BITS | predicted[starts].astype(np.int64)
    pairs, index = np.unique(codes, return_inverse=True)
    pixels = np.bincount(index, weights=lengths).astype(np.int64)
    return {
        (pair >> _ID_BITS, pair & (1 << _ID_BITS) - 1): count for pair, count in zip(pairs.tolist(), pixels.tolist())
    }


def match_segments(
    pairs: Pairs, annotated: Sequence[Mapping[str, Any]], predicted: Mapping[int, int]
) -> dict[int, CategoryCounts]:
    """Compare the segments of one image.

    Args:
        pairs: see ``count_pairs``.
        annotated: ``segments_info`` of the label; ``id``, ``category_id`` and ``iscrowd`` are read. Areas are counted,
            and a segment without a pixel is none.
        predicted: category of each predicted id; each occurs in ``pairs``.

    Returns:
        Counts of the categories that occur.

    Source: Panoptic Segmentation (arXiv 1801.00868), section 4; panopticapi where the paper is silent: crowds.
    """
    true_areas: Counter[int] = Counter()
    areas: Counter[int] = Counter()
    for (true_id, predicted_id), pixels in pairs.items():
        true_areas[true_id] += pixels
        areas[predicted_id] += pixels
    truth = {segment["id"]: {**segment, "area": true_areas[segment["id"]]} for segment in annotated}
    truth = {segment_id: segment for segment_id, segment in truth.items() if segment["area"]}
    ious = _matches(pairs, truth, predicted, areas)
    categories = {segment["category_id"] for segment in truth.values()} | set(predicted.values())
    counts = {category: CategoryCounts() for category in sorted(categories)}
    for (true_id, _), iou in ious.items():
        counts[truth[true_id]["category_id"]].add(CategoryCounts(iou=iou, matched=1))
    for true_id in truth.keys() - {true_id for true_id, _ in ious}:
        counts[truth[true_id]["category_id"]].missed += truth[true_id]["iscrowd"] != 1
    crowds = {segment["category_id"]: segment["id"] for segment in truth.values() if segment["iscrowd"] == 1}
    for predicted_id in predicted.keys() - {predicted_id for _, predicted_id in ious}:
        category = predicted[predicted_id]
        excused = pairs.get((VOID, predicted_id), 0)
        if category in crowds:
            excused += pairs.get((crowds[category], predicted_id), 0)
        counts[category].invented += 2 * excused <= areas[predicted_id]
    return counts


def _matches(
    pairs: Pairs, truth: Mapping[int, Mapping[str, Any]], predicted: Mapping[int, int], areas: Mapping[int, int]
) -> dict[tuple[int, int], float]:
    """The IoU of pairs of one category that exceeds 1/2."""
    ious = {}
    for (true_id, predicted_id), intersection in pairs.items():
        if true_id not in truth or predicted_id not in predicted or truth[true_id]["iscrowd"] == 1:
            continue
        if truth[true_id]["category_id"] == predicted[predicted_id]:
            void = pairs.get((VOID, predicted_id), 0)
            iou = intersection / (areas[predicted_id] + truth[true_id]["area"] - intersection - void)
            if iou > 0.5:
                ious[true_id, predicted_id] = iou
    return ious


def average_quality(counts: Iterable[CategoryCounts]) -> Quality:
    """The means over the categories that label or prediction have.

    Args:
        counts: of each category, over all images.
    """
    seen = [(count, count.matched + (count.invented + count.missed) / 2) for count in counts]
    seen = [(count, weight) for count, weight in seen if weight]
    if not seen:
        return Quality(PQ=float("nan"), SQ=float("nan"), RQ=float("nan"), categories=0)
    return Quality(
        PQ=100 * sum(count.iou / weight for count, weight in seen) / len(seen),
        SQ=100 * sum(count.iou / max(count.matched, 1) for count, _ in seen) / len(seen),
        RQ=100 * sum(count.matched / weight for count, weight in seen) / len(seen),
        categories=len(seen),
    )
