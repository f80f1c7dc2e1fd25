"""Resizing of a window alone: what a crop would throw away is never computed.

Both functions say what Pillow says of the whole, ``image.resize(size)`` followed by ``crop``. Maps of integers agree
in every pixel. So do pictures but for ties: Pillow takes the borders of a window in single precision, which moves the
filter by some 1e-6 pixels, so that a value half-way between two grey levels may be rounded to the other one. That is
about one value in 1,400, and never more than one level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

SPARE_PIXELS = 24  # computed beside a window and cut off, where that moves a border to a number that Pillow can hold
WHOLE_AXIS = 0.8  # a window of more than this share of an axis is cut from the whole axis, which needs no rounding


@dataclass(frozen=True)
class Window:
    """Rows ``top`` to ``top + height`` and columns ``left`` to ``left + width`` of a resized image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class _Span:
    """One axis of a window: what to give to Pillow and where the window lies in its answer."""

    source: tuple[int, int]  # first and past the last pixel of the original that the filter reaches
    box: tuple[float, float]  # the part of these to resize
    size: int  # the length of the result
    skipped: int  # pixels of the result before the window


def resize_picture(
    picture: Image.Image, new_size: tuple[int, int], window: Window, resample: int = Image.Resampling.BILINEAR
) -> Image.Image:
    """Resize a picture and keep a window.

    Args:
        picture: of any mode that Pillow resizes.
        new_size: (height, width) of the whole resized picture.
        window: lies within it.
        resample: Pillow's filter.
    """
    if window == Window(0, 0, *new_size):
        return picture.resize(new_size[::-1], resample)
    if resample == Image.Resampling.NEAREST:  # no filter; its steps are Pillow's own
        resized = picture.resize(new_size[::-1], resample)
        return resized.crop(_corners(window.left, window.top, window.width, window.height))
    rows = _span(picture.height, new_size[0], window.top, window.height)
    columns = _span(picture.width, new_size[1], window.left, window.width)
    source = (columns.source[0], rows.source[0], columns.source[1], rows.source[1])
    if source != (0, 0, *picture.size):
        picture = picture.crop(source)
    # One axis a call: given both, Pillow takes the rows first where a window is much wider than high, and rounds
    # between the two.
    box = (columns.box[0], 0, columns.box[1], picture.height)
    wide = picture.resize((columns.size, picture.height), resample, box=box)
    if columns.size != window.width:
        wide = wide.crop(_corners(columns.skipped, 0, window.width, wide.height))
    resized = wide.resize((wide.width, rows.size), resample, box=(0, rows.box[0], wide.width, rows.box[1]))
    if rows.size == window.height:
        return resized
    return resized.crop(_corners(0, rows.skipped, window.width, window.height))


def resize_map(integer_map: np.ndarray, new_size: tuple[int, int], window: Window) -> np.ndarray:
    """Resize a map of integers to the nearest pixel and keep a window.

    Args:
        integer_map: (H,W).
        new_size: (height, width) of the whole resized map.
        window: lies within it.

    Returns:
        (height, width) of the window, of the same type.
    """
    rows = _nearest(integer_map.shape[0], new_size[0])[window.top : window.top + window.height]
    columns = _nearest(integer_map.shape[1], new_size[1])[window.left : window.left + window.width]
    return integer_map.take(rows, axis=0).take(columns, axis=1)


def _corners(left: int, top: int, width: int, height: int) -> tuple[int, int, int, int]:
    return left, top, left + width, top + height


def _nearest(size: int, new_size: int) -> np.ndarray:
    """The original pixel of each resized one; Pillow adds up steps, and so does this, to round as it does."""
    steps = np.full(new_size, size / new_size)
    steps[0] *= 0.5
    return np.cumsum(steps).astype(np.intp)


def _span(size: int, new_size: int, start: int, length: int) -> _Span:
    """Choose what Pillow resizes so that its single-precision borders are nearly those of the window."""
    if length > WHOLE_AXIS * new_size or size == new_size:
        if size == new_size:  # no filter along this axis
            return _Span((start, start + length), (0, length), length, 0)
        return _Span((0, size), (0, size), new_size, start)
    scale = size / new_size
    reach = 4 * max(scale, 1.0)  # more than the filters' support: three pixels, of the coarser of both grids
    firsts = np.arange(max(start - SPARE_PIXELS, 0), start + 1)
    lasts = np.arange(start + length, min(start + length + SPARE_PIXELS, new_size) + 1)
    source_start = max(int(firsts[0] * scale - reach), 0)
    source_stop = min(int(lasts[-1] * scale + reach) + 1, size)
    left, right = firsts * scale - source_start, lasts * scale - source_start
    first = np.abs(np.float32(left) - left)[::-1].argmin()
    low, start_of_result = left[::-1][first], firsts[::-1][first]
    extent = np.float32(right) - np.float32(low)
    last = np.abs(extent - (right - low)).argmin()
    box = (float(low), float(min(right[last], source_stop - source_start)))
    return _Span((source_start, source_stop), box, int(lasts[last] - start_of_result), int(start - start_of_result))
