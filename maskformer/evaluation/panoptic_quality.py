"""Panoptic quality as panopticapi defines it, of arrays instead of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from panopticapi.evaluation import PQStat

METRICS = ("PQ", "SQ", "RQ")  # panoptic quality, segmentation quality, recognition quality
VOID = 0  # the id of pixels that belong to no segment
_ID_BITS = 32

Pairs = dict[tuple[int, int], int]


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


def match_segments(pairs: Pairs, annotated: Sequence[Mapping[str, Any]], predicted: Mapping[int, int]) -> PQStat:
    """Compare the segments of one image.

    Args:
        pairs: see ``count_pairs``.
        annotated: ``segments_info`` of the label; ``id``, ``category_id`` and ``iscrowd`` are read. Areas are counted,
            and a segment without a pixel is none.
        predicted: category of each predicted id; each occurs in ``pairs``.

    Returns:
        By category: true positives, which have an IoU above 1/2, with the sum of it; false positives and negatives.

    Source: Panoptic Segmentation (arXiv 1801.00868), section 4; panopticapi where the paper is silent: crowds.
    """
    true_areas: Counter[int] = Counter()
    areas: Counter[int] = Counter()
    for (true_id, predicted_id), pixels in pairs.items():
        true_areas[true_id] += pixels
        areas[predicted_id] += pixels
    truth = {segment["id"]: segment for segment in annotated if true_areas[segment["id"]]}
    crowds = {segment["category_id"]: id_ for id_, segment in truth.items() if segment["iscrowd"] == 1}
    counts, matched_truth, matched = PQStat(), set(), set()
    for (true_id, predicted_id), intersection in pairs.items():
        if true_id not in truth or predicted_id not in predicted or truth[true_id]["iscrowd"] == 1:
            continue
        if truth[true_id]["category_id"] != predicted[predicted_id]:
            continue
        void = pairs.get((VOID, predicted_id), 0)
        iou = intersection / (areas[predicted_id] + true_areas[true_id] - intersection - void)
        if iou > 0.5:
            counts[predicted[predicted_id]].iou += iou
            counts[predicted[predicted_id]].tp += 1
            matched_truth.add(true_id)
            matched.add(predicted_id)
    for true_id in truth.keys() - matched_truth:
        counts[truth[true_id]["category_id"]].fn += truth[true_id]["iscrowd"] != 1
    for predicted_id in predicted.keys() - matched:
        category = predicted[predicted_id]
        excused = pairs.get((VOID, predicted_id), 0) + pairs.get((crowds.get(category, -1), predicted_id), 0)
        counts[category].fp += 2 * excused <= areas[predicted_id]
    return counts


def average_quality(counts: PQStat, categories: Collection[int]) -> tuple[dict[str, float], int]:
    """The means over those categories that label or prediction have.

    Args:
        counts: of all images.
        categories: to average over.

    Returns:
        ``METRICS`` in percent, nan where there is no category; and how many categories there are.
    """
    seen = dict.fromkeys(id_ for id_ in categories if counts[id_].tp + counts[id_].fp + counts[id_].fn)
    if not seen:
        return dict.fromkeys(METRICS, float("nan")), 0
    means, _ = counts.pq_average(seen, isthing=None)
    return {metric: 100 * means[metric.lower()] for metric in METRICS}, len(seen)
