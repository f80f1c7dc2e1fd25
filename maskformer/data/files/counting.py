"""Tables over the values of a map: counting them and replacing them, without eight bytes for each pixel."""

from __future__ import annotations

import cv2
import numpy as np

from maskformer.kernels import import_pixel_loops


def count_values(integer_map: np.ndarray) -> np.ndarray:
    """Count how often each value occurs.

    Args:
        integer_map: (H,W) integers >= 0.

    Returns:
        (n,) int64, n above the largest value.
    """
    loops = import_pixel_loops()
    if loops is None or integer_map.dtype != np.uint8:
        return np.bincount(integer_map.ravel())
    values = integer_map.ravel()
    words, rest = np.split(values, [values.size // 8 * 8])
    words = words.view(np.uint64)
    counts = np.bincount(rest, minlength=256)
    loops.count_bytes(read_only(words if words.flags.aligned else words.copy()), counts)
    return counts


def present_values(integer_map: np.ndarray) -> np.ndarray:
    """Say which values occur. Of wide integers, only those where the map changes are sorted: neighbours mostly agree.

    Args:
        integer_map: (H,W) integers.

    Returns:
        Distinct values of the map's type, ascending.
    """
    if integer_map.dtype == np.uint8:
        return np.flatnonzero(count_values(integer_map)).astype(np.uint8)
    values = integer_map.ravel()
    changes = np.flatnonzero(values[1:] != values[:-1])
    return np.unique(np.append(values[changes], values[-1:]))


def replace_values(integer_map: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replace each value by the table's.

    Args:
        integer_map: (H,W) integers >= 0.
        table: (n,), n above the largest value.

    Returns:
        (H,W) of the table's type.
    """
    if integer_map.dtype == table.dtype == np.uint8 and integer_map.size:
        full = np.zeros(256, dtype=np.uint8)
        full[: len(table)] = table[:256]
        return cv2.LUT(np.ascontiguousarray(integer_map), full)
    return table.take(integer_map)


def read_only(array: np.ndarray) -> np.ndarray:
    """The same array, contiguous and not to be written to: what is compiled for one kind of array serves for all."""
    array = np.ascontiguousarray(array).view()
    array.flags.writeable = False
    return array
