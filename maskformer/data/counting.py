"""Tables over the values of a map: counting them and replacing them, without eight bytes for each pixel."""

from __future__ import annotations

import cv2
import numpy as np

EXACT_COUNT = 2**24  # OpenCV counts in single precision, which holds every integer up to here


def count_values(integer_map: np.ndarray) -> np.ndarray:
    """Count how often each value occurs.

    Args:
        integer_map: (H,W) integers >= 0.

    Returns:
        (n,) int64, n above the largest value.
    """
    if integer_map.dtype == np.uint8 and 0 < integer_map.size <= EXACT_COUNT:
        counts = cv2.calcHist([np.ascontiguousarray(integer_map)], [0], None, [256], [0, 256])
        return counts.ravel().astype(np.int64)  # OpenCV 4 gives a column, 5 a row
    return np.bincount(integer_map.ravel())


def present_values(integer_map: np.ndarray) -> np.ndarray:
    """Say which values occur: looked up where the map changes, as neighbours mostly agree.

    Args:
        integer_map: (H,W) integers.

    Returns:
        Distinct values of the map's type, ascending.
    """
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
