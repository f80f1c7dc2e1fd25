"""Masks of annotated instances, polygons, COCO's run lengths and files: what they must be like to be relied on.

pycocotools asks nothing of what it is given: from bad run lengths it writes beyond its memory.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as rle
from detectron2.structures import BoxMode, PolygonMasks

from maskformer.structures import BadImageError

from .reading import read_class_map

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
    """The area that COCO and Detectron2 give a mask, in pixels: what polygons enclose, what run lengths count."""
    if isinstance(segmentation, dict):
        runs = read_runs(segmentation["counts"])
        assert runs is not None
        return float(runs[1::2].sum())
    return float(PolygonMasks([segmentation]).area()[0])


def _find_polygon_fault(polygon: Sequence[Any], size: tuple[int, int] | None) -> str | None:
    limit = _FAR * max(size or (10_000, 10_000))
    is_plain = isinstance(polygon, list) and polygon and set(map(type, polygon)) <= {int, float}
    if is_plain and -limit <= min(polygon) and max(polygon) <= limit and math.isfinite(sum(polygon)):  # NaN: of the sum
        return None  # without an array, which takes longer
    try:
        values = np.asarray(polygon)
    except (ValueError, OverflowError):
        values = np.array(None)
    if values.ndim != 1 or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        return f"has the polygon {reprlib.repr(polygon)}; expected finite numbers x0, y0, x1, y1, ..."
    far = values[(values < -limit) | (values > limit)]
    return f"has a polygon with the coordinate {far[0]}, which is far outside the image" if far.size else None


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, dict))


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bytes)) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def encode_segments(id_map: np.ndarray, segment_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Encode segments, all in one pass over the map: an image of Cityscapes has two million pixels and fifty segments.

    Args:
        id_map: (H,W) integers.
        segment_ids: the values of the map to encode, each of which must occur.

    Returns:
        For each id, COCO's compressed RLE with ``size`` [H, W] and ``counts`` as text, ready for a JSON file.
    """
    height, width = id_map.shape
    pixels = id_map.ravel(order="F")  # COCO counts down the columns
    starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
    ends = np.append(starts[1:], pixels.size)
    values = pixels[starts]
    encoded = {}
    for segment_id in segment_ids:
        runs = np.flatnonzero(values == segment_id)
        borders = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        counts = np.diff(borders, prepend=0, append=pixels.size).tolist()  # gap, run, gap, ..., gap
        if not counts[-1]:
            counts.pop()  # as pycocotools writes a run that ends in the last pixel
        compressed = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        encoded[int(segment_id)] = {"size": [height, width], "counts": compressed["counts"].decode("ascii")}
    return encoded


def find_rle_fault(encoded: dict[str, Any], size: tuple[int, int] | None = None) -> str | None:
    """Say what is wrong with a run-length encoding, which pycocotools does not ask: it writes beyond its memory.

    Args:
        encoded: COCO's RLE with ``size`` [H, W] and ``counts``: compressed (text or bytes), or a list of runs.
        size: (height, width) of its image; None: not known.

    Returns:
        What would follow the words "its mask", or None.
    """
    found = encoded.get("size")
    if not isinstance(found, (list, tuple)) or len(found) != 2 or not all(type(side) is int for side in found):
        return f"has the size {reprlib.repr(found)}; expected [height, width] in pixels"
    if size is not None and tuple(found) != size:
        return f"has the size {tuple(found)} (height, width) but the image has {size}; expected equal sizes"
    runs = read_runs(encoded.get("counts"))
    num_pixels = found[0] * found[1]
    is_possible = min(found) > 0 and num_pixels < 2**32  # with which pycocotools counts
    if is_possible and runs is not None and ((runs >= 0) & (runs <= num_pixels)).all() and runs.sum() == num_pixels:
        return None
    return f"has counts that are no run lengths of {found[0]} x {found[1]} pixels"


def read_runs(counts: Any) -> np.ndarray | None:
    """Run lengths, as a list has them or as COCO compresses them.

    Args:
        counts: of COCO's RLE.

    Returns:
        (n,) int64, of a gap, a run, a gap, ..., down the columns; None where they are neither.
    """
    if isinstance(counts, list):
        are_integers = all(type(run) is int and abs(run) < 2**62 for run in counts)
        return np.array(counts, dtype=np.int64) if are_integers else None
    if not isinstance(counts, (str, bytes)) or (isinstance(counts, str) and not counts.isascii()):
        return None
    text = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, dtype=np.uint8)
    # Each character from "0" on holds five bits, lowest first, and a sixth that says whether another one follows.
    digits = text.astype(np.int64) - 48
    if not digits.size or ((digits < 0) | (digits > 63)).any() or digits[-1] & 32:
        return None
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 32 bits
        return None
    shifts = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((digits & 31) << shifts, starts)
    values -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)  # two's complement
    for first in (1, 2):  # from the fourth run on, the difference to the last but one
        values[first::2] = values[first::2].cumsum()
    return values


class ObjectMasks(Sequence[dict[str, Any]]):
    """The annotations of an image whose objects stand in mask files, read each time that they are asked for.

    So they cost nothing before a training, and little memory: workers read those of their images.

    Args:
        files: one in which every object has its number, or one of each object.
        are_single: whether each file shows one object: where it is not 0.
        ignored: values of pixels that belong to no object, beside 0.
    """

    def __init__(self, files: Sequence[str], *, are_single: bool, ignored: Sequence[int] = ()):
        self.files, self.are_single, self.ignored = tuple(files), are_single, tuple(ignored)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.files:
            yield from self._read(file)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _read(self, file: str) -> Iterator[dict[str, Any]]:
        id_map = read_class_map(file, from_grey=True)
        objects = np.setdiff1d(id_map, [0, *self.ignored])
        if self.are_single and len(objects) > 1:
            raise BadImageError(
                f"Mask file {file} holds the values {', '.join(map(str, objects[:5]))}; expected 0 and one other, for "
                "it is one of several files of an image, each of one object."
            )
        for segmentation in encode_segments(id_map, objects).values():
            box = {"bbox": rle.toBbox(segmentation).tolist(), "bbox_mode": BoxMode.XYWH_ABS}
            yield {"category_id": 0, "iscrowd": 0, "segmentation": segmentation, **box}
