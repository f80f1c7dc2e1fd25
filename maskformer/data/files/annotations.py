"""What an annotated instance must be like before pycocotools or anything else relies on it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import PolygonMasks

from .run_lengths import find_rle_fault, read_runs

# A corner may lie this many times the image's size outside of it. Far ones make pycocotools fill the memory, for it
# lists every point of an outline.
_FAR = 10


def find_fault(annotation: dict[str, Any], size: tuple[int, int] | None = None) -> str | None:
    """Say what is wrong with an instance's box or mask.

    Args:
        annotation: ``bbox`` and ``segmentation`` (polygons or RLE) are looked at, where it has them.
        size: (height, width) of its image; None: not known.

    Returns:
        What would follow the words "the annotation" (has ...), or None.
    """
    box: Any = annotation.get("bbox")
    segmentation = annotation.get("segmentation")
    if "bbox" in annotation and not (_is_sequence(box) and len(box) == 4 and all(map(_is_finite, box))):
        return f"has the box {reprlib.repr(box)}; expected four finite numbers"
    if isinstance(segmentation, dict):
        fault = find_rle_fault(segmentation, size)
        return fault and f"has a mask that {fault}"
    if segmentation is None:
        return None
    if not isinstance(segmentation, list) or not all(map(_is_sequence, segmentation)):
        return f"has the segmentation {reprlib.repr(segmentation)}; expected polygons or RLE"
    return next(filter(None, (_find_polygon_fault(polygon, size) for polygon in segmentation)), None)


def drawn_part(segmentation: Any) -> Any:
    """The part of an annotated mask that draws something, as Detectron2's loader takes it.

    Args:
        segmentation: polygons or RLE without a fault.

    Returns:
        RLE with a pixel, or the polygons of three corners or more: of two, pycocotools would make a box. None where
        nothing is left: such an annotation is no object.
    """
    if isinstance(segmentation, dict):
        runs = read_runs(segmentation["counts"])
        return segmentation if runs is not None and runs[1::2].any() else None
    return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0] or None


def mask_area(segmentation: Any) -> float:
    """The area that COCO and Detectron2 give a mask, in pixels: what polygons enclose, what run lengths count.

    Args:
        segmentation: polygons or RLE that draw something.
    """
    if isinstance(segmentation, dict):
        runs = read_runs(segmentation["counts"])
        assert runs is not None
        return float(runs[1::2].sum())
    return float(PolygonMasks([segmentation]).area()[0])


def _find_polygon_fault(polygon: Sequence[Any], size: tuple[int, int] | None) -> str | None:
    limit = _FAR * max(size or (10_000, 10_000))
    if _are_numbers_within(limit, polygon):
        return None
    if not all(map(_is_finite, polygon)):
        return f"has the polygon {reprlib.repr(polygon)}; expected finite numbers x0, y0, x1, y1, ..."
    far = next((value for value in polygon if abs(value) > limit), None)
    return None if far is None else f"has a polygon with the coordinate {far}, which is far outside the image"


def _are_numbers_within(limit: int, values: Sequence[Any]) -> bool:
    """Whether it takes no closer look: numbers of one kind, all finite and at most ``limit`` from 0."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        return False
    return array.ndim == 1 and array.dtype.kind in "iuf" and bool(((-limit <= array) & (array <= limit)).all())


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, dict))


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bytes)) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False
