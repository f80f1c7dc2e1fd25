"""Counting the values of a map."""

from __future__ import annotations

import numpy as np
from PIL import Image


def count_values(integer_map: np.ndarray) -> np.ndarray:
    """Count how often each value occurs.

    Args:
        integer_map: (H,W) integers >= 0.

    Returns:
        (n,) int64, n above the largest value.
    """
    if integer_map.dtype == np.uint8 and integer_map.size:
        counts = Image.fromarray(np.ascontiguousarray(integer_map)).histogram()  # bincount would make 8 bytes of each
        return np.array(counts, dtype=np.int64)
    return np.bincount(integer_map.ravel())
