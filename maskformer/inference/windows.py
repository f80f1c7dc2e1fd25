"""Sliding windows: an image larger than the network is good at, one overlapping part after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from .resize import Size


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows start along one side, so that they cover it, evenly spread and as few as the overlap allows.

    Args:
        length: of the side, in pixels.
        window: likewise; 1 or more.
        overlap: the least fraction of a window that it shares with the next, 0 <= overlap < 1; a step is at least
            one pixel.

    Returns:
        Ascending, from 0 to ``length - window``; [0] where one window covers the side.
    """
    if window >= length:
        return [0]
    furthest_step = max(int(window * (1 - overlap) + 1e-6), 1)  # 10 * (1 - 0.8) is a little below 2
    last = length - window
    num_steps = math.ceil(last / furthest_step)
    return [last * step // num_steps for step in range(num_steps + 1)]


def plan_windows(size: Size, window_size: Size, overlap: float) -> Iterator[tuple[slice, slice]]:
    """Yields (rows, columns) of every window, row by row; they stay inside the image."""
    for top in window_starts(size[0], window_size[0], overlap):
        for left in window_starts(size[1], window_size[1], overlap):
            yield (
                slice(top, min(top + window_size[0], size[0])),
                slice(left, min(left + window_size[1], size[1])),
            )


def slide_window(image: Tensor, window_size: Size, overlap: float, scores_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Average the scores of overlapping windows; a pixel's score is the mean over the windows that hold it.

    One window is computed at a time: memory grows with the image only by its scores.

    Args:
        image: (3,rows,columns).
        window_size: (height, width) in pixels of ``image``; a larger window is the image itself.
        overlap: see ``window_starts``.
        scores_of: a part of the image (3,y,x) -> its scores (K,y,x).

    Returns:
        (K,rows,columns) scores.
    """
    rows, columns = image.shape[-2:]
    total = count = None
    for window in plan_windows((rows, columns), window_size, overlap):
        scores = scores_of(image[(slice(None), *window)])
        if total is None or count is None:
            total = scores.new_zeros(len(scores), rows, columns)
            count = scores.new_zeros(rows, columns)
        total[(slice(None), *window)] += scores
        count[window] += 1
    assert total is not None and count is not None  # there is always a window
    return total.div_(count)
