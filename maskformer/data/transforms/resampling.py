"""Resizing of a window alone: what a crop would throw away is never computed.

All functions say what Pillow says of the whole, ``image.resize(size)`` followed by ``crop``, in every pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import cv2
import numpy as np
import PIL
from PIL import Image

from maskformer.kernels import import_pixel_loops

from ..files.counting import read_only

_BITS = 22  # behind the point of a filter's weights, as in Pillow
_ROWS_AT_ONCE = 64  # of the original: few enough for the second cache


@dataclass(frozen=True)
class Window:
    """Rows ``top`` to ``top + height`` and columns ``left`` to ``left + width`` of a resized image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Pillow names them."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, as NumPy names them."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def covers(self, size: tuple[int, int]) -> bool:
        """Whether it is the whole of an image of that (height, width)."""
        return self == Window(0, 0, *size)


@dataclass(frozen=True)
class _Filter:
    """Along one axis, what each pixel of a window is made of.

    Attributes:
        source: first and past the last pixel of the original that any of them needs.
        starts: (length,) intp, the first pixel that each is made of, counted from the former.
        weights: (length,taps) uint32, times 2^22, of that pixel and the next ones; 0 beyond the last that is used.
    """

    source: tuple[int, int]
    starts: np.ndarray
    weights: np.ndarray


def resize_picture(
    picture: Image.Image, new_size: tuple[int, int], window: Window, resample: int = Image.Resampling.BILINEAR
) -> Image.Image:
    """Resize a picture with Pillow and keep a window.

    Args:
        picture: of any mode that Pillow resizes.
        new_size: (height, width) of the whole resized picture.
        window: lies within it.
        resample: Pillow's filter.
    """
    resized = picture.resize(new_size[::-1], resample)
    return resized if window.covers(new_size) else resized.crop(window.corners)


def find_resizing(
    size: tuple[int, int], new_size: tuple[int, int], window: Window, resample: int
) -> CompiledResizing | None:
    """The compiled resizing of a picture, a window of it alone; None: it is Pillow's work.

    Args:
        size: (height, width) of the original.
        new_size: see ``resize_picture``, like the others.
        window: see there.
        resample: see there.
    """
    loops = import_pixel_loops()
    if loops is None or resample != Image.Resampling.BILINEAR:
        return None
    rows = _plan_filter(size[0], new_size[0], window.top, window.height)
    columns = _plan_filter(size[1], new_size[1], window.left, window.width)
    # Pillow rounds between the two, so that the order matters. Before Pillow 13, columns always go first.
    rows_go, columns_go = size[0] - new_size[0], size[1] - new_size[1]
    rows_first = int(PIL.__version__.split(".")[0]) >= 13 and rows_go > 0 and rows_go > 2 * columns_go
    return CompiledResizing(loops, rows, columns, rows_first)


@dataclass(frozen=True)
class CompiledResizing:
    """A resizing of one picture.

    Attributes:
        loops: ``kernels.pixel_loops``.
        rows: how each row of the window is made.
        columns: how each column.
        rows_first: whether columns are made of rows that are already made.
    """

    loops: ModuleType
    rows: _Filter
    columns: _Filter
    rows_first: bool

    @property
    def source(self) -> Window:
        """The part of the original that the window is made of."""
        (top, bottom), (left, right) = self.rows.source, self.columns.source
        return Window(top, left, bottom - top, right - left)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Resize the part of a picture that the window is made of.

        Args:
            pixels: uint32, ``source`` of the original, packed as ``data.movable.Picture`` says.

        Returns:
            (height, width) uint32 of the window.
        """
        resized = np.empty((len(self.rows.starts), len(self.columns.starts)), np.uint32)
        for top, band in self.bands(pixels):
            resized[top : top + len(band)] = band
        return resized

    def bands(self, pixels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Resize as a call does, some rows at a time: the number of the first, and the rows."""
        height, width = len(self.rows.starts), len(self.columns.starts)
        step = max(_ROWS_AT_ONCE * height // len(pixels), _ROWS_AT_ONCE if self.rows_first else 16)
        for top in range(0, height if width else 0, step):
            starts, weights = self.rows.starts[top : top + step], self.rows.weights[top : top + step]
            band = pixels[starts[0] : starts[-1] + weights.shape[1]]
            if not self.rows_first:
                band = self._filter_columns(band)
            rows = np.empty((len(starts), band.shape[1]), np.uint32)
            self.loops.filter_rows(band, starts - starts[0], weights, rows)
            yield top, self._filter_columns(rows) if self.rows_first else rows

    def _filter_columns(self, pixels: np.ndarray) -> np.ndarray:
        filtered = np.empty((len(self.columns.starts), len(pixels)), np.uint32)
        self.loops.filter_rows(_turn(pixels), self.columns.starts, self.columns.weights, filtered)
        return _turn(filtered)


def _turn(pixels: np.ndarray) -> np.ndarray:
    """Rows become columns: so both are filtered by a loop over what lies side by side."""
    return cv2.transpose(pixels.view(np.int32)).view(np.uint32)


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
    return _Filter((first, stop), firsts_that_fit - first, (weights * (1 << _BITS) + 0.5).astype(np.uint32))


def prepare_resizing() -> None:
    """Load the compiled loops, so that worker processes which are forked later share them."""
    loops = import_pixel_loops()
    resizing = find_resizing((2, 2), (4, 4), Window(0, 0, 4, 4), Image.Resampling.BILINEAR)
    if loops is not None and resizing is not None:
        pixels = resizing(np.zeros((2, 2), np.uint32))
        loops.split_channels(read_only(pixels), np.empty((3, 4, 4), np.uint8), 0, False)
        resize_map(np.zeros((2, 2), np.uint8), (4, 4), Window(0, 0, 4, 4))


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
    loops = import_pixel_loops()
    if loops is None:
        return integer_map.take(rows, axis=0).take(columns, axis=1)
    resized = np.empty((len(rows), len(columns)), integer_map.dtype)
    loops.take_nearest(read_only(integer_map), rows, columns, resized)
    return resized


def _nearest(size: int, new_size: int) -> np.ndarray:
    """The original pixel of each resized one; Pillow adds up steps, and so does this, to round as it does."""
    steps = np.full(new_size, size / new_size)
    steps[0] *= 0.5
    return np.cumsum(steps).astype(np.intp)
