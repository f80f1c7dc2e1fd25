"""From a label map, a panoptic map or instance masks to the segments that the network shall predict. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskformer.structures import BadImageError, SegmentMasks

from ..files.reading import present_values


def semantic_targets(label_map: np.ndarray, ignore_label: int) -> tuple[Tensor, SegmentMasks]:
    """Make one segment of each class present.

    Args:
        label_map: (H,W) integers, 0..K-1 or ``ignore_label``.
        ignore_label: the value of pixels without a class; they belong to no segment.

    Returns:
        ``labels`` (G,) int64, ascending, and the masks.
    """
    classes = present_values(label_map)
    classes = classes[classes != ignore_label].astype(np.int64)
    segment_map = number_segments(label_map, classes)
    return torch.from_numpy(classes), SegmentMasks(torch.from_numpy(segment_map), len(classes))


def panoptic_targets(pan_ids: np.ndarray, segments_info: Sequence[dict[str, Any]]) -> tuple[Tensor, SegmentMasks]:
    """Make one segment of each that is no crowd and has a pixel left: a segment that a crop emptied is no target.

    Args:
        pan_ids: (H,W) integers: the ``id`` of a segment; any other value is void.
        segments_info: ``id``, ``category_id`` (0..K-1) and, where it is one, ``iscrowd`` of each segment.

    Returns:
        ``labels`` (G,) int64, in the order of ``segments_info``, and the masks.
    """
    segments = [segment for segment in segments_info if not segment.get("iscrowd", 0)]
    segment_map = number_segments(pan_ids, [segment["id"] for segment in segments])
    visible = visible_segments(segment_map, len(segments))
    if not visible.all():
        segments = [segments[index] for index in np.flatnonzero(visible)]
        segment_map = number_segments(segment_map, np.flatnonzero(visible) + 1)
    labels = torch.tensor([segment["category_id"] for segment in segments], dtype=torch.int64)
    return labels, SegmentMasks(torch.from_numpy(segment_map), len(segments))


def instance_targets(classes: Sequence[int], layers: np.ndarray) -> tuple[Tensor, SegmentMasks]:
    """Keep the instances that have a pixel left.

    Args:
        classes: G integers, 0..K-1.
        layers: (layers,H,W) integers: g + 1 where instance g is, in one of the layers; 0 elsewhere. Instances that
            overlap stand in different ones.

    Returns:
        ``labels`` (G,) int64, in the given order, and the masks.
    """
    rows = layers.reshape(-1, layers.shape[-1])
    kept = np.flatnonzero(visible_segments(rows, len(classes)))
    segment_map = number_segments(rows, kept + 1).reshape(layers.shape)
    labels = torch.tensor([classes[index] for index in kept.tolist()], dtype=torch.int64)
    return labels, SegmentMasks(torch.from_numpy(segment_map), len(kept))


def number_segments(id_map: np.ndarray, segment_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Replace arbitrary ids by segment numbers: g + 1 where ``id_map`` is ``segment_ids[g]``, 0 elsewhere.

    Args:
        id_map: (H,W) integers >= 0.
        segment_ids: G distinct integers >= 0.

    Returns:
        (H,W), the smallest of uint8, int16 and int32 that holds G.
    """
    segment_ids = np.asarray(segment_ids, dtype=np.int64)
    num_segments = len(segment_ids)
    dtype = np.uint8 if num_segments <= 255 else np.int16 if num_segments <= 32767 else np.int32
    are_numbers = id_map.dtype == dtype and np.array_equal(segment_ids, np.arange(1, num_segments + 1))
    if are_numbers and id_map.max(initial=0) <= num_segments:
        return np.array(id_map, order="C")
    # Panoptic ids have 24 bits; np.zeros takes its pages lazily, so only those that hold an id of this image cost time.
    number_of_id = np.zeros(int(id_map.max(initial=0)) + 1, dtype=dtype)
    may_occur = segment_ids < len(number_of_id)
    number_of_id[segment_ids[may_occur]] = np.arange(1, num_segments + 1)[may_occur]
    return number_of_id.take(id_map)


def category_map(id_map: np.ndarray, segments_info: Sequence[dict[str, Any]], ignore_label: int) -> np.ndarray:
    """Make the semantic label that a panoptic one implies.

    Args:
        id_map: (H,W) integers: the ``id`` of a segment; any other value is void.
        segments_info: ``id`` and ``category_id`` of each segment, crowds too.
        ignore_label: the value of void pixels.

    Returns:
        (H,W) uint8 where every value fits, else int32.
    """
    category_of_segment = [ignore_label, *(segment["category_id"] for segment in segments_info)]
    dtype = np.uint8 if max(category_of_segment) <= 255 else np.int32
    segment_map = number_segments(id_map, [segment["id"] for segment in segments_info])
    return np.array(category_of_segment, dtype=dtype).take(segment_map)


def visible_segments(segment_map: np.ndarray, num_segments: int) -> np.ndarray:
    """Say which of the segments 1..G of a map (H,W) have a pixel: (G,) bool."""
    return np.isin(np.arange(1, num_segments + 1), present_values(segment_map))


def number_annotated_segments(
    id_map: np.ndarray, segments_info: Sequence[dict[str, Any]], label_file: str
) -> tuple[np.ndarray, np.ndarray]:
    """Number segments from 1, in their order but crowds last, after comparing the ids of a map with its annotation's.

    Args:
        id_map: (H,W) integers; 0 is void.
        segments_info: ``id`` and, where it is one, ``iscrowd`` of each segment.
        label_file: what the map was read from.

    Returns:
        (H,W) segment numbers, and (G,) the pixels of each.

    Raises:
        BadImageError: one has an id that the other lacks, or the annotation has one twice; a crowd may lack pixels.
    """
    ids = [segment["id"] for segment in sorted(segments_info, key=lambda segment: segment.get("iscrowd", 0))]
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise BadImageError(
            f"The dataset's JSON gives {label_file} the segment id {twice} twice; expected each id once."
        )
    segment_map = number_segments(id_map, ids)
    areas = np.bincount(segment_map.ravel(), minlength=len(ids) + 1)[1:]
    remedy = "make PNG and JSON again by one run of the preparation (datasets/README.md)."
    num_targets = sum(not segment.get("iscrowd", 0) for segment in segments_info)
    if not areas[:num_targets].all():
        raise BadImageError(
            f"Segment {ids[int(areas[:num_targets].argmin())]} of the dataset's JSON has no pixel in {label_file}; "
            f"expected the same ids in both: {remedy}"
        )
    if np.count_nonzero(id_map) != areas.sum():
        foreign = np.setdiff1d(id_map, [0, *ids])[0]
        raise BadImageError(
            f"{label_file} has pixels of the segment {foreign}, which the dataset's JSON does not name; expected the "
            f"same ids in both, and 0 for void: {remedy}"
        )
    return segment_map, areas
