from __future__ import annotations

import math

import numpy as np
import pytest
from panopticapi.evaluation import PQStat

from maskformer.evaluation.panoptic import VOID, average_quality, count_matches, count_pairs, match_segments


def compare(predicted: list, label: list) -> PQStat:
    """Maps in which a segment's id is its category, 1 or 2."""
    pairs = count_pairs(np.array(label), np.array(predicted))
    annotated = [{"id": id_, "category_id": id_, "iscrowd": 0} for id_ in (1, 2)]
    return count_matches(match_segments(pairs, annotated, {id_: id_ for _, id_ in pairs if id_ != VOID}))


def counts_of(quality: PQStat, category: int) -> tuple[int, int, int]:
    """True positives, false positives, false negatives."""
    return quality[category].tp, quality[category].fp, quality[category].fn


def test_pairs_are_counted_with_ids_of_31_bits():
    large = 2**31 - 1
    assert count_pairs(np.array([[0, large], [large, large]]), np.array([[5, 5], [5, large]])) == {
        (0, 5): 1,
        (large, 5): 2,
        (large, large): 1,
    }


def test_quality_of_four_pixels_by_hand():
    """Category 1 has three of four pixels in common: IoU 3/4. Category 2 is a false positive."""
    quality = compare([[1, 1], [1, 2]], [[1, 1], [1, 1]])
    assert average_quality(quality, [1, 2]) == ({"PQ": 37.5, "SQ": 37.5, "RQ": 50}, 2)
    assert [counts_of(quality, category) for category in (1, 2)] == [(1, 0, 0), (0, 1, 0)]


def test_an_iou_of_one_half_is_no_match():
    quality = compare([[1, 1], [2, 2]], [[1, 1], [1, 1]])
    assert [counts_of(quality, category) for category in (1, 2)] == [(0, 1, 1), (0, 1, 0)]


def test_void_pixels_count_for_nobody():
    assert average_quality(compare([[1, 1], [1, 2]], [[1, 1], [VOID, VOID]]), [1, 2])[0]["PQ"] == 100
    quality = compare([[1, 2], [1, 2]], [[1, 1], [1, VOID]])
    assert counts_of(quality, 2) == (0, 1, 0)  # half on void pixels is not more than half


def test_pixels_without_prediction_are_false_negatives():
    assert counts_of(compare([[VOID, VOID]], [[2, 2]]), 2) == (0, 0, 1)


def test_counts_of_images_add_up():
    quality = compare([[1, 1]], [[1, 1]])
    quality += compare([[2, 2]], [[1, 1]])
    assert average_quality(quality, [1, 2])[0]["PQ"] == pytest.approx(100 * (1 / 1.5 + 0) / 2)


def test_without_any_segment_quality_is_nan():
    scores, count = average_quality(PQStat(), [1, 2])
    assert count == 0 and all(math.isnan(score) for score in scores.values())
