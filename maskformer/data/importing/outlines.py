"""From shapes to masks: polygons with holes, boxes, ellipses and bitmaps as COCO's polygons or run lengths.

Coordinates are x, y in pixels, from the upper left corner of the upper left pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as rle

from ..files.masks import find_fault
from .source import Annotated, Losses, Size
from .target import Record, to_rle

_CORNERS = 120  # of an ellipse: its area is 0.05 % too small
EMPTY = "shapes without a pixel in the picture"
NO_AREA = "shapes that enclose nothing (points, lines)"
BAD = "shapes whose numbers make no sense"
UNKNOWN_CLASS = "shapes of a class that is not in the list"


def ellipse(centre: Any, radii: Any, degrees: float = 0.0) -> np.ndarray:
    """Corners (n,2) of an ellipse about a centre (x, y), with two radii, turned clockwise."""
    angles = np.linspace(0, 2 * math.pi, _CORNERS, endpoint=False)
    corners = np.stack([radii[0] * np.cos(angles), radii[1] * np.sin(angles)], axis=1) + np.asarray(centre)
    return turn(corners, centre, degrees)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Corners (4,2) of a rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)


def turn(corners: np.ndarray, about: Any, degrees: float) -> np.ndarray:
    """Turn corners (n,2) clockwise, as seen, about a point."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (corners - np.asarray(about)) @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(about)


def from_polygon(exterior: Any, size: Size, holes: Sequence[Any] = ()) -> Any:
    """COCO's polygon of an outline; RLE if there are holes.

    Args:
        exterior: corners (n,2).
        size: (height, width) of the picture.
        holes: corners of each.

    Raises:
        ValueError: a corner is no number, or far outside of the picture.
    """
    rings = [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in (exterior, *holes)]
    flat = [np.round(ring, 3).ravel().tolist() for ring in rings]
    if find_fault({"segmentation": flat}, size):
        raise ValueError("corners")
    if len(flat) == 1 or len(rings[0]) < 3:
        return flat[:1]
    inside = rle.decode(to_rle(flat[:1], size))
    for hole in flat[1:]:
        if len(hole) >= 6:
            inside &= 1 - rle.decode(to_rle([hole], size))
    return from_bitmap(inside, 0, 0, size)


def from_bitmap(bitmap: np.ndarray, left: int, top: int, size: Size) -> Record:
    """RLE of a bitmap (h,w), which is 0 outside of the object, whose corner is at a pixel of the picture."""
    whole = np.zeros(size, dtype=np.uint8, order="F")
    height, width = bitmap.shape
    rows = slice(min(max(top, 0), size[0]), min(max(top + height, 0), size[0]))
    columns = slice(min(max(left, 0), size[1]), min(max(left + width, 0), size[1]))
    part = bitmap[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    whole[rows, columns] = part != 0
    encoded = rle.encode(whole)
    return {"size": list(size), "counts": encoded["counts"].decode("ascii")}


def from_runs(runs: Iterable[int], size: Size) -> np.ndarray:
    """A bitmap (h,w) of lengths of 0, 1, 0, ... along the rows.

    Raises:
        ValueError: they are not as long as the bitmap.
    """
    lengths = np.array(list(runs), dtype=np.int64)
    if min(size) < 1 or (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        raise ValueError("run lengths")
    return np.repeat(np.arange(len(lengths)) & 1, lengths).astype(np.uint8).reshape(size)


class Shapes:
    """Collects the objects of one picture, in the order of drawing; parts of one object are joined.

    Args:
        size: (height, width) of the picture.
        where: what to call it.
        losses: where what is no object is counted.
    """

    def __init__(self, size: Size, where: str, losses: Losses):
        self.size, self.where, self._losses = size, where, losses
        self._objects: dict[Any, tuple[str | None, list[Any]]] = {}

    def add(self, name: str | None, segmentation: Any, group: Any = None) -> None:
        """Add an object, or a part of one: of the same class and group, if that is not None."""
        if isinstance(segmentation, list):
            segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not segmentation or not rle.area(to_rle(segmentation, self.size)):
            self.lose(EMPTY)
            return
        key = (name, group) if group is not None else len(self._objects)
        self._objects.setdefault(key, (name, []))[1].append(segmentation)

    def lose(self, what: str) -> None:
        """Count what is no object."""
        self._losses.add(what, self.where)

    def objects(self) -> list[Annotated]:
        """All that was added."""
        return [Annotated(name, self._join(parts)) for name, parts in self._objects.values()]

    def _join(self, parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        if all(isinstance(part, list) for part in parts):
            return [polygon for part in parts for polygon in part]
        merged = rle.merge([to_rle(part, self.size) for part in parts])
        return {"size": list(self.size), "counts": merged["counts"].decode("ascii")}
