"""From a map of segment ids to COCO's run-length encoding of each segment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pycocotools.mask as rle


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
