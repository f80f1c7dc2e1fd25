"""The formulas of losses and inference, pixel by pixel: one pass where PyTorch's operators take up to twenty.

All of them are in this file, because Numba keeps compiled functions on disk until their file changes, whatever they
call. Arrays are contiguous, and float32 if nothing else is said; NaN stays NaN.
"""

from __future__ import annotations

import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from .interpolation import Array, Interpolation

logger = logging.getLogger(__name__)


class Compiled:
    """A function that Numba compiles when it is first called, for the types that it is called with.

    What comes out is kept on disk, beside the source or in the user's cache folder. Where it can be neither written nor
    read the function is compiled in each run. While it runs, other threads do too: it does not hold Python's lock.

    Args:
        function: of arrays and numbers.
        reorders_sums: sums may be taken in another order, several at a time.
    """

    def __init__(self, function: Callable[..., Any], *, reorders_sums: bool = False):
        self._function = function
        # "contract" fuses products with sums and changes nothing else: NaN stays NaN.
        self._fastmath = {"contract", "reassoc"} if reorders_sums else {"contract"}
        try:
            self._run = self._compile(cache=True)
        except RuntimeError as error:  # there is no folder to write to
            self._keep_nothing(error)

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        try:
            return self._run(*arguments)
        except (OSError, EOFError, pickle.UnpicklingError) as error:  # of a full disk, or what one left behind
            self._keep_nothing(error)
            return self._run(*arguments)

    def _keep_nothing(self, error: Exception) -> None:
        logger.warning("%s is compiled in each run, some seconds: %s", self._function.__name__, error)
        self._run = self._compile(cache=False)

    def _compile(self, *, cache: bool) -> Any:
        return njit(nogil=True, error_model="numpy", fastmath=self._fastmath, cache=cache)(self._function)


_f = np.float32

_LOG2_E = _f(1.4426950408889634)
# log 2 in two parts: an integer below 2^9 times the first has no rounding error (Cody and Waite).
_LOG_2_HIGH, _LOG_2_LOW = _f(0.693359375), _f(-2.12194440e-4)

_PIXELS_AT_ONCE = 1024  # few enough for the first cache


@njit(inline="always")
def _exp_of_negative(x: Any) -> Any:
    """e^x for x <= 0: 2^n e^r with |r| <= log(2) / 2, where e^r is its series; e^-87 is as small as it gets."""
    x = _f(-87.0) if x < _f(-87.0) else x
    n = np.floor(x * _LOG2_E + _f(0.5))
    r = (x - n * _LOG_2_HIGH) - n * _LOG_2_LOW
    series = _f(1 / 5040)
    for factorial in (720, 120, 24, 6, 2, 1, 1):
        series = series * r + _f(1 / factorial)
    exponent_bits = (np.int32(n) + np.int32(127)) << np.int32(23)
    return series * np.int32(exponent_bits).view(np.float32)


@njit(inline="always")
def _log_of_one_plus(u: Any) -> Any:
    """log(1 + u) for 0 <= u <= 1: 2 artanh(w) with w = u / (2 + u) <= 1/3, by the series of artanh up to w^15."""
    w = u / (_f(2) + u)
    square = w * w
    series = _f(1 / 15)
    for odd in (13, 11, 9, 7, 5, 3, 1):
        series = series * square + _f(1 / odd)
    return _f(2) * w * series


@Compiled
def compare_matched_mask(
    logits: Array, mask: Array, rows: Interpolation, columns: Interpolation, sums: Array, maps: Array, alpha: Any
) -> None:
    """What ``losses.matched_masks`` needs of one mask and its target, whose letters and formulas these are.

    Args:
        logits: (h,w), coarse.
        mask: (H,W) bool, the target.
        rows: from h to H.
        columns: from w to W.
        sums: (3,), written: sums over pixels of e, z e and the focal loss.
        maps: (3,h,w), written: gradient of the focal sum, e (1 - e) and z e (1 - e), each taken back to (h,w).
        alpha: float32, the focal loss's weight of pixels inside.
    """
    num_rows, num_columns = len(logits), mask.shape[1]
    wide = np.empty((num_rows, num_columns), np.float32)
    _upsample_columns(logits, columns, wide)
    wide_maps = np.zeros((num_rows, 3, num_columns), np.float32)
    row_sums = np.zeros((3, num_columns), np.float32)
    row_maps = np.empty((3, num_columns), np.float32)
    row = np.empty(num_columns, np.float32)
    for y in range(len(mask)):
        low, high = rows.low[y], min(rows.low[y] + 1, num_rows - 1)
        for x in range(num_columns):
            row[x] = rows.low_weight[y] * wide[low, x] + rows.high_weight[y] * wide[high, x]
        _compare_row(row, mask[y], alpha, row_sums, row_maps)
        _add_weighted(wide_maps[low], rows.low_weight[y], row_maps)
        _add_weighted(wide_maps[high], rows.high_weight[y], row_maps)
    for term in range(3):
        sums[term] = row_sums[term].astype(np.float64).sum()
    for coarse_row in range(num_rows):
        _add_columns_up(wide_maps[coarse_row], columns, maps[:, coarse_row])


@njit(inline="always")
def _compare_row(logits: Array, mask: Array, alpha: Any, sums: Array, maps: Array) -> None:
    """One row (W,) of logits and of the target; sums (3,W) are added to, maps (3,W) written."""
    for x in range(len(mask)):
        z = _f(1) - _f(2) * _f(mask[x])
        s = z * logits[x]
        u = _exp_of_negative(-abs(s))
        larger = _f(1) / (_f(1) + u)  # of e and 1 - e
        smaller = u * larger
        e, right = (smaller, larger) if s < _f(0) else (larger, smaller)
        softplus = (_f(0) if s < _f(0) else s) + _log_of_one_plus(u)
        weight = (_f(0.5) + (_f(0.5) - alpha) * z) * e * e
        slope = e * right
        sums[0, x] += e
        sums[1, x] += z * e
        sums[2, x] += weight * softplus
        maps[0, x] = z * weight * (_f(2) * right * softplus + e)
        maps[1, x] = slope
        maps[2, x] = slope * z


@njit(inline="always")
def _add_weighted(total: Array, weight: Any, maps: Array) -> None:
    for term in range(3):
        for x in range(maps.shape[1]):
            total[term, x] += weight * maps[term, x]


@njit(inline="always")
def _upsample_columns(coarse: Array, columns: Interpolation, fine: Array) -> None:
    last = coarse.shape[1] - 1
    for y in range(len(coarse)):
        for x in range(fine.shape[1]):
            low = columns.low[x]
            high = min(low + 1, last)
            fine[y, x] = columns.low_weight[x] * coarse[y, low] + columns.high_weight[x] * coarse[y, high]


@njit(inline="always")
def _add_columns_up(fine: Array, columns: Interpolation, coarse: Array) -> None:
    """The transpose of upsampling, of (3,W) to (3,w): coarse pixels collect from the fine ones they were given to."""
    a_before = b_before = c_before = _f(0)
    for x in range(coarse.shape[1]):
        a, b, c = a_before, b_before, c_before
        a_before = b_before = c_before = _f(0)
        for place in range(columns.first[x], columns.first[x + 1]):
            low_weight, high_weight = columns.low_weight[place], columns.high_weight[place]
            a += low_weight * fine[0, place]
            b += low_weight * fine[1, place]
            c += low_weight * fine[2, place]
            a_before += high_weight * fine[0, place]
            b_before += high_weight * fine[1, place]
            c_before += high_weight * fine[2, place]
        coarse[0, x], coarse[1, x], coarse[2, x] = a, b, c


@Compiled
def write_pairwise_terms(logits: Array, contrast: Array, probs: Array, sums: Array, negative_weight: Any) -> None:
    """What ``losses.functional.pairwise_mask_costs`` needs of each pixel.

    Args:
        logits: (n, pixels).
        contrast: (n, pixels), written: the positive cost, (1 - p)^2 softplus(-x), minus the weighted negative one.
        probs: (n, pixels), written: p.
        sums: (2,n), written: over pixels of the negative cost, p^2 softplus(x), and of p.
        negative_weight: float32.
    """
    num_pixels = logits.shape[1]
    part_sums = np.empty((2, _PIXELS_AT_ONCE), np.float32)
    for n in range(len(logits)):
        part_sums[:] = 0
        for start in range(0, num_pixels, _PIXELS_AT_ONCE):
            part = slice(start, min(start + _PIXELS_AT_ONCE, num_pixels))
            _write_some_terms(logits[n, part], contrast[n, part], probs[n, part], part_sums, negative_weight)
        for term in range(2):
            sums[term, n] = part_sums[term].astype(np.float64).sum()


@njit(inline="always")
def _write_some_terms(logits: Array, contrast: Array, probs: Array, sums: Array, negative_weight: Any) -> None:
    for pixel in range(len(logits)):
        x = logits[pixel]
        u = _exp_of_negative(-abs(x))
        larger = _f(1) / (_f(1) + u)  # of p and 1 - p
        smaller = u * larger
        log = _log_of_one_plus(u)
        p, rest, softplus, softplus_of_negative = (
            (smaller, larger, log, log - x) if x < _f(0) else (larger, smaller, log + x, log)
        )
        negative = p * p * softplus
        contrast[pixel] = rest * rest * softplus_of_negative - negative_weight * negative
        probs[pixel] = p
        sums[0, pixel] += negative
        sums[1, pixel] += p


@Compiled
def write_mask_probs(
    logits: Array, top: int, rows: Interpolation, columns: Interpolation, start: int, probs: Array
) -> None:
    """Some rows of masks: p of upsampled logits, for ``inference.resize``.

    Args:
        logits: (Q,n,w), the coarse rows from ``top`` on that the fine ones lie between.
        top: see there.
        rows: from all coarse rows to the padded input.
        columns: from w to the padded input, of which the columns beyond W are left out.
        start: the first fine row.
        probs: (Q,rows,W), written.
    """
    num_queries, num_rows, num_columns = probs.shape
    last = logits.shape[1] - 1
    wide = np.empty((last + 1, num_columns), np.float32)
    for q in range(num_queries):
        _upsample_columns(logits[q], columns, wide)
        for y in range(num_rows):
            low = rows.low[start + y] - top
            high = min(low + 1, last)
            low_weight, high_weight = rows.low_weight[start + y], rows.high_weight[start + y]
            for x in range(num_columns):
                probs[q, y, x] = low_weight * wide[low, x] + high_weight * wide[high, x]
            _replace_by_sigmoid(probs[q, y])


@njit(inline="always")
def _replace_by_sigmoid(values: Array) -> None:
    for place in range(len(values)):
        x = values[place]
        u = _exp_of_negative(-abs(x))
        larger = _f(1) / (_f(1) + u)
        values[place] = u * larger if x < _f(0) else larger


@Compiled
def write_best_classes(scores: Array, labels: Array) -> None:
    """The first of the classes with the largest score.

    Args:
        scores: (K,pixels).
        labels: (pixels,) int32, written.
    """
    best = scores[0].copy()
    labels[:] = 0
    for k in range(1, len(scores)):
        for pixel in range(len(labels)):
            score = scores[k, pixel]
            is_better = score > best[pixel]
            labels[pixel] = np.int32(k) if is_better else labels[pixel]
            best[pixel] = score if is_better else best[pixel]


@Compiled
def sample_values(
    image: int, head: int, values: Array, sizes: Array, locations: Array, weights: Array, sampled: Array
) -> None:
    """One head of one image of ``modeling.transformer.deformable.sample_values``.

    Args:
        image: 0..B-1.
        head: 0..M-1.
        values: (B, cells, M, channels).
        sizes: (maps,2) int64, rows and columns.
        locations: (B,T,M,maps,points,2).
        weights: (B,T,M,maps,points).
        sampled: (B,T,M,channels), of which those of the image and head are written.
    """
    num_tokens, num_points = locations.shape[1], locations.shape[4]
    corners, shares = np.empty(4, np.int64), np.empty(4, np.float32)
    for token in range(num_tokens):
        total = sampled[image, token, head]
        total[:] = 0
        first = 0
        for level in range(len(sizes)):
            rows, columns = sizes[level]
            for point in range(num_points):
                _find_corners(locations[image, token, head, level, point], first, rows, columns, corners, shares)
                weight = weights[image, token, head, level, point]
                a, b, c, d = weight * shares[0], weight * shares[1], weight * shares[2], weight * shares[3]
                one, two = values[image, max(corners[0], 0), head], values[image, max(corners[1], 0), head]
                three, four = values[image, max(corners[2], 0), head], values[image, max(corners[3], 0), head]
                for channel in range(len(total)):
                    total[channel] += a * one[channel] + b * two[channel] + c * three[channel] + d * four[channel]
            first += rows * columns


@njit(inline="always")
def _find_corners(location: Array, first: int, rows: int, columns: int, corners: Array, shares: Array) -> Any:
    """The four cells around a place (-1: beyond the edge) and their bilinear shares; the shares of right and bottom."""
    x, y = location[0] * _f(columns) - _f(0.5), location[1] * _f(rows) - _f(0.5)
    left, top = np.floor(x), np.floor(y)
    right_share, bottom_share = x - left, y - top
    for corner in range(4):
        step_x, step_y = corner % 2, corner // 2
        column, row = left + _f(step_x), top + _f(step_y)
        is_inside = _f(0) <= column < _f(columns) and _f(0) <= row < _f(rows)
        share = (right_share if step_x else _f(1) - right_share) * (bottom_share if step_y else _f(1) - bottom_share)
        corners[corner] = first + np.int64(row) * columns + np.int64(column) if is_inside else -1
        shares[corner] = share if is_inside else _f(0) * share  # NaN of a place that is none, as in grid_sample
    return right_share, bottom_share


@functools.partial(Compiled, reorders_sums=True)
def differentiate_sampled_values(
    image: int,
    head: int,
    values: Array,
    sizes: Array,
    locations: Array,
    weights: Array,
    gradient: Array,
    value_gradient: Array,
    location_gradient: Array,
    weight_gradient: Array,
) -> None:
    """The gradient of ``sample_values``.

    Args:
        image: see there, as the next five.
        head: see above.
        values: see above.
        sizes: see above.
        locations: see above.
        weights: see above.
        gradient: (B,T,M,channels), of what was sampled.
        value_gradient: as ``values``; added to.
        location_gradient: as ``locations``; written.
        weight_gradient: as ``weights``; written.
    """
    num_tokens, num_points = locations.shape[1], locations.shape[4]
    corners, shares, products = np.empty(4, np.int64), np.empty(4, np.float32), np.empty(4, np.float32)
    for token in range(num_tokens):
        incoming = gradient[image, token, head]
        first = 0
        for level in range(len(sizes)):
            rows, columns = sizes[level]
            for point in range(num_points):
                x, y = _find_corners(locations[image, token, head, level, point], first, rows, columns, corners, shares)
                weight = weights[image, token, head, level, point]
                for corner in range(4):
                    products[corner] = _f(0)
                    cell = corners[corner]
                    if cell >= 0:
                        share = weight * shares[corner]
                        value, target = values[image, cell, head], value_gradient[image, cell, head]
                        product = _f(0)
                        for channel in range(len(incoming)):
                            product += incoming[channel] * value[channel]
                        for channel in range(len(incoming)):
                            target[channel] += share * incoming[channel]
                        products[corner] = product
                a, b, c, d = products
                weight_gradient[image, token, head, level, point] = (
                    shares[0] * a + shares[1] * b + shares[2] * c + shares[3] * d
                )
                along_x = (_f(1) - y) * (b - a) + y * (d - c)
                along_y = (_f(1) - x) * (c - a) + x * (d - b)
                location_gradient[image, token, head, level, point, 0] = weight * along_x * _f(columns)
                location_gradient[image, token, head, level, point, 1] = weight * along_y * _f(rows)
            first += rows * columns


@Compiled
def sample_maps(maps: Array, points: Array, sampled: Array) -> None:
    """What ``losses.points`` samples of maps at the same points, bilinear, 0 beyond their edge.

    Args:
        maps: (maps, rows, columns) float32 or bool.
        points: (P,2), x and y, 0..1 of the width and of the height where they are on the maps.
        sampled: (maps,P), written.
    """
    rows, columns = maps.shape[1:]
    corners, shares = np.empty((_PIXELS_AT_ONCE, 4), np.int64), np.empty((_PIXELS_AT_ONCE, 4), np.float32)
    for start in range(0, len(points), _PIXELS_AT_ONCE):
        part = points[start : start + _PIXELS_AT_ONCE]
        for point in range(len(part)):
            _find_corners(part[point], 0, rows, columns, corners[point], shares[point])
        for n in range(len(maps)):
            cells = maps[n].reshape(-1)
            for point in range(len(part)):
                total = _f(0)
                for corner in range(4):
                    total += shares[point, corner] * _f(cells[max(corners[point, corner], 0)])
                sampled[n, start + point] = total
