"""Pictures with other channels than red, green and blue, or of numbers beyond 8 bits: satellites, microscopes."""

from __future__ import annotations

import io
from typing import IO, Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from maskformer.structures import Bands, InputError

_MOST_BYTES = 2**31  # of all bands
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two of more than 4 GiB


class BandsError(Exception):
    """What is wrong with a picture that could be opened."""


def read_bands(file_name: str, bands: Bands, max_pixels: int) -> np.ndarray:
    """Read three channels of a picture as 8 bits.

    Args:
        file_name: a TIFF of any number of bands, or a picture that Pillow reads.
        bands: which to take, and what values become 0 and 255.
        max_pixels: that are allowed.

    Returns:
        (H,W,3) uint8.

    Raises:
        BandsError: it is too large, or has not these bands, or values of no known range.
    """
    with PathManager.open(file_name, "rb") as file:
        content = file.read()
    pixels = _decode_tiff(content, max_pixels) if content[:4] in _TIFF else _decode_picture(content, max_pixels)
    count = pixels.shape[2]
    numbers = bands.numbers or ((1, 2, 3) if count >= 3 else (1,))
    if max(numbers) > count:
        raise BandsError(f"it has {count} bands, but band {max(numbers)} is wanted: correct bands in DATASETS.OWN")
    chosen = _to_bytes(pixels[:, :, [number - 1 for number in numbers]], bands.value_range)
    return np.ascontiguousarray(np.broadcast_to(chosen, (*chosen.shape[:2], 3)))


def size_of_bands(file_name: str) -> tuple[int, int]:
    """The (height, width) of a picture, of which only the head is decoded.

    Raises:
        BandsError: it has more axes than rows, columns and bands.
    """
    with PathManager.open(file_name, "rb") as file:
        if file.read(4) in _TIFF:
            with _open_tiff(file) as tiff:
                return _axes_of(tiff)[1]
        with Image.open(file) as image:
            return image.size[::-1]


def _open_tiff(file: IO[bytes]) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise InputError(
            "bands and range of DATASETS.OWN need the package tifffile to read TIFF files: pip install tifffile "
            "imagecodecs."
        ) from error
    file.seek(0)
    return tifffile.TiffFile(file)


def _axes_of(tiff: Any) -> tuple[list[int], tuple[int, int]]:
    """Which axes of the first picture are rows, columns and, where there are several, bands; and (height, width)."""
    series = tiff.series[0]
    sizes = dict(zip(series.axes, series.shape, strict=True))
    size = (sizes.pop("Y", 0), sizes.pop("X", 0))
    others = [axis for axis, size in sizes.items() if size > 1]  # side by side in each pixel, or one after the other
    if 0 in size or len(others) > 1:
        raise BandsError(f"it has the axes {series.axes} of {series.shape}; expected the bands of one picture")
    return [series.axes.index(axis) for axis in ("Y", "X", *others)], size


def _decode_tiff(content: bytes, max_pixels: int) -> np.ndarray:
    with _open_tiff(io.BytesIO(content)) as tiff:
        axes, (height, width) = _axes_of(tiff)
        _check_size(width, height, max_pixels)
        series = tiff.series[0]
        if series.nbytes > _MOST_BYTES:
            raise BandsError(f"it is too large ({series.nbytes} bytes unpacked, {_MOST_BYTES} are allowed)")
        pixels = series.asarray().reshape(series.shape)
    axes += [axis for axis in range(pixels.ndim) if axis not in axes]
    return pixels.transpose(axes).reshape(height, width, -1)


def _decode_picture(content: bytes, max_pixels: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        _check_size(image.width, image.height, max_pixels)
        if image.mode in ("P", "1", "CMYK", "YCbCr"):
            return np.asarray(image.convert("RGB"))
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BandsError(f"it is too large ({width} x {height} pixels, {max_pixels} in all are allowed)")


def _to_bytes(pixels: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    if value_range is None and pixels.dtype == np.uint8:
        return pixels
    if value_range is None and pixels.dtype == np.uint16 and not 0 < pixels.max(initial=0) < 256:
        return (pixels >> 8).astype(np.uint8)
    if value_range is None or pixels.dtype.kind not in "uif":
        raise BandsError(
            f"its pixels are of the type {pixels.dtype}, {pixels.min()}..{pixels.max()}, of no known range: say which "
            "values become 0 and 255, such as "
            "range: [0, 1], in DATASETS.OWN"
        )
    low, high = value_range
    scaled = (pixels.astype(np.float32) - low) * (255 / (high - low))
    # What a satellite did not see is often NaN.
    return np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).round().clip(0, 255).astype(np.uint8)
