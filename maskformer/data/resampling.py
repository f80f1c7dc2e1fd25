"""Resizing of a window alone: what a crop would throw away is never computed.

Both functions say what Pillow says of the whole, ``image.resize(size)`` followed by ``crop``. Maps of integers agree in
every pixel, and so do pictures that get no fewer rows. Of some others, Pillow filters the rows before the columns and
rounds between the two: whole pictures are left to it, and in windows of them a value may differ by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskformer.kernels import import_loops


@dataclass(frozen=True)
class Window:
    """Rows ``top`` to ``top + height`` and columns ``left`` to ``left + width`` of a resized image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class _Filter:
    """Along one axis, what each pixel of a window is made of.

    Attributes:
        source: first and past the last pixel of the original that any of them needs.
        starts: (length,) uint32, the first pixel that each is made of, counted from the former.
        weights: (length,taps) int32, times 2^22, of that pixel and the next ones; 0 beyond the last that is used.
    """

    source: tuple[int, int]
    starts: np.ndarray
    weights: np.ndarray


def resize_picture(
    picture: Image.Image | np.ndarray,
    new_size: tuple[int, int],
    window: Window,
    resample: int = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Resize a picture and keep a window.

    Args:
        picture: of any mode that Pillow resizes, or (H,W,3) uint8.
        new_size: (height, width) of the whole resized picture.
        window: lies within it.
        resample: Pillow's filter.

    Returns:
        (height, width, 3) uint8 of the window, channels as in the picture; another shape for another mode.
    """
    loops = import_loops()
    height, is_rgb = (
        (len(picture), True) if isinstance(picture, np.ndarray) else (picture.height, picture.mode == "RGB")
    )
    columns_first = new_size[0] >= height or window != Window(0, 0, *new_size)
    if loops is not None and is_rgb and resample == Image.Resampling.BILINEAR and columns_first:
        return _resize_compiled(loops, picture, new_size, window)
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    resized = picture.resize(new_size[::-1], resample)
    return np.asarray(resized.crop(_corners(window.left, window.top, window.width, window.height)))


def _resize_compiled(
    loops: Any, picture: Image.Image | np.ndarray, new_size: tuple[int, int], window: Window
) -> np.ndarray:
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
    rows = _plan_filter(height, new_size[0], window.top, window.height)
    columns = _plan_filter(width, new_size[1], window.left, window.width)
    pixels = _cut(picture, slice(*rows.source), slice(*columns.source))
    wide = np.empty((len(pixels), window.width, 3), np.uint8)
    loops.resize_columns(pixels, columns.starts, columns.weights, wide)
    resized = np.empty((window.height, window.width, 3), np.uint8)
    loops.resize_rows(
        wide.reshape(len(wide), -1), rows.starts, rows.weights, resized.reshape(window.height, window.width * 3)
    )
    return resized


def _cut(picture: Image.Image | np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Contiguous, and never to be written to: what is compiled for one kind of array serves for all."""
    if isinstance(picture, Image.Image):
        if (columns.stop - columns.start, rows.stop - rows.start) != picture.size:
            picture = picture.crop((columns.start, rows.start, columns.stop, rows.stop))
        return np.asarray(picture)
    pixels = np.ascontiguousarray(picture[rows, columns]).view()
    pixels.flags.writeable = False
    return pixels


def _plan_filter(size: int, new_size: int, start: int, length: int) -> _Filter:
    """Pillow's bilinear filter: a triangle as wide as two pixels of the coarser grid, cut off at the borders."""
    scale = size / new_size
    reach = max(scale, 1.0)
    centers = (np.arange(start, start + length) + 0.5) * scale
    firsts = np.maximum((centers - reach + 0.5).astype(np.intp), 0)
    stops = np.minimum((centers + reach + 0.5).astype(np.intp), size)
    taps = int((stops - firsts).max(initial=1))
    firsts_that_fit = np.minimum(firsts, size - taps)  # at the border, taps before the first have no weight
    pixels = firsts_that_fit[:, None] + np.arange(taps)
    weights = np.maximum(1 - np.abs((pixels - centers[:, None] + 0.5) / reach), 0)
    weights[(pixels < firsts[:, None]) | (pixels >= stops[:, None])] = 0
    weights /= weights.sum(1, keepdims=True)
    first, stop = int(firsts_that_fit.min(initial=0)), int(stops.max(initial=taps))
    return _Filter(
        (first, stop), (firsts_that_fit - first).astype(np.uint32), (weights * (1 << 22) + 0.5).astype(np.int32)
    )


def prepare_resizing() -> None:
    """Load the compiled loops, so that worker processes which are forked later share them."""
    resize_picture(np.zeros((2, 2, 3), np.uint8), (4, 4), Window(0, 0, 4, 4))


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
