from __future__ import annotations

import numpy as np
import pytest
import torch

from maskformer.data.mappers.targets import instance_targets, number_segments, panoptic_targets, semantic_targets

BIG_ID = 256**3 - 1


def test_semantic_targets_are_one_mask_per_class_present_in_ascending_order() -> None:
    labels, masks = semantic_targets(np.array([[2, 0], [255, 2]], np.uint8), ignore_label=255)
    assert labels.tolist() == [0, 2]
    assert masks.tensor.tolist() == [[[False, True], [False, False]], [[True, False], [False, True]]]
    assert masks.segment_map.tolist() == [[2, 1], [0, 2]]


def test_ignore_label_inside_the_range_of_values_makes_no_segment() -> None:
    labels, masks = semantic_targets(np.array([[1, 0], [1, 2]], np.uint8), ignore_label=1)
    assert labels.tolist() == [0, 2]
    assert masks.segment_map.tolist() == [[0, 1], [0, 2]]


def test_image_of_ignored_pixels_has_no_semantic_target() -> None:
    labels, masks = semantic_targets(np.full((2, 3), 255, np.uint8), ignore_label=255)
    assert labels.shape == (0,) and labels.dtype == torch.int64
    assert masks.tensor.shape == (0, 2, 3)


def test_panoptic_targets_follow_the_order_of_segments_info() -> None:
    ids = np.array([[7, 7], [BIG_ID, 0]])
    segments = [{"id": BIG_ID, "category_id": 4}, {"id": 7, "category_id": 1, "iscrowd": 0}]
    labels, masks = panoptic_targets(ids, segments)
    assert labels.tolist() == [4, 1]
    assert masks.tensor.tolist() == [[[False, False], [True, False]], [[True, True], [False, False]]]


def test_crowd_is_no_target_and_its_pixels_belong_to_no_segment() -> None:
    segments = [{"id": 7, "category_id": 1, "iscrowd": 1}, {"id": 9, "category_id": 2, "iscrowd": 0}]
    labels, masks = panoptic_targets(np.array([[7, 9], [7, 0]]), segments)
    assert labels.tolist() == [2]
    assert masks.segment_map.tolist() == [[0, 1], [0, 0]]


def test_segment_without_a_pixel_is_no_target() -> None:
    segments = [{"id": i, "category_id": i} for i in (1, 2, 3)]
    labels, masks = panoptic_targets(np.array([[3, 3], [1, 3]]), segments)
    assert labels.tolist() == [1, 3]
    assert masks.segment_map.tolist() == [[2, 2], [1, 2]]
    assert masks.nonempty().all()


def test_image_without_segments_has_no_panoptic_target() -> None:
    labels, masks = panoptic_targets(np.array([[5, 0]]), [])
    assert labels.shape == (0,) and labels.dtype == torch.int64
    assert masks.tensor.shape == (0, 1, 2)


def test_ids_absent_from_segments_info_are_void() -> None:
    assert number_segments(np.array([[5, 6]]), [6]).tolist() == [[0, 1]]
    assert number_segments(np.array([[5, 6]]), [10**9, 6]).tolist() == [[0, 2]]


@pytest.mark.parametrize(("num_segments", "dtype"), [(0, np.uint8), (255, np.uint8), (256, np.int16)])
def test_segment_map_has_the_smallest_type_that_holds_every_number(num_segments: int, dtype: type) -> None:
    ids = np.arange(num_segments + 1)[None]
    segment_map = number_segments(ids, range(1, num_segments + 1))
    assert segment_map.dtype == dtype
    assert np.array_equal(segment_map, ids)


def test_map_of_numbers_is_copied_for_a_crop_of_it_must_not_carry_the_whole() -> None:
    whole = np.arange(6, dtype=np.uint8).reshape(2, 3)
    numbered = number_segments(whole[:, 1:], range(1, 6))
    assert numbered.tolist() == [[1, 2], [4, 5]]
    assert numbered.flags.c_contiguous and numbered.base is None
    assert number_segments(whole, range(1, 5)).tolist() == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_vectorised_targets_agree_with_a_loop_over_segments(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for num_segments in (1, 5, 300):
        segment_ids = rng.choice(BIG_ID, num_segments, replace=False) + 1
        ids = rng.choice([0, *segment_ids], (9, 11)).astype(dtype)
        segments = [{"id": int(i), "category_id": int(i) % 7, "iscrowd": int(rng.random() < 0.2)} for i in segment_ids]
        labels, masks = panoptic_targets(ids, segments)
        expected = [(s["category_id"], ids == s["id"]) for s in segments if not s["iscrowd"] and (ids == s["id"]).any()]
        assert labels.tolist() == [category for category, _ in expected]
        assert np.array_equal(masks.tensor.numpy(), np.array([mask for _, mask in expected]).reshape(-1, 9, 11))

        label_map = rng.choice([0, 3, 40, 255], (9, 11)).astype(np.uint8)
        labels, masks = semantic_targets(label_map, 255)
        assert labels.tolist() == sorted(set(label_map.ravel().tolist()) - {255})
        for label, mask in zip(labels.tolist(), masks.tensor.numpy(), strict=True):
            assert np.array_equal(mask, label_map == label)


def test_overlapping_instances_keep_their_whole_masks_and_empty_ones_are_dropped() -> None:
    layers = np.array([[[1, 1], [0, 0]], [[3, 0], [3, 0]]], dtype=np.uint8)
    labels, masks = instance_targets([5, 6, 4], layers)
    assert labels.tolist() == [5, 4]
    assert masks.tensor.tolist() == [[[True, True], [False, False]], [[True, False], [True, False]]]


def test_image_without_instances_has_masks_of_its_size() -> None:
    labels, masks = instance_targets([], np.zeros((1, 2, 3), dtype=np.uint8))
    assert labels.shape == (0,) and labels.dtype == torch.int64
    assert masks.tensor.shape == (0, 2, 3)
