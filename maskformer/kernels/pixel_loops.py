"""What data loading does to each pixel of pictures and maps of integers.

A picture is an array of one 32-bit number a pixel: red + 256 green + 65536 blue, and anything above. As in ``loops``,
all functions are in this file, and arrays are contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .compiling import Compiled
from .interpolation import Array

# Numba computes with 64 bits what is not said to be of 32, and then half as many pixels at once.
_u = np.uint32

_BITS = _u(22)  # behind the point of a filter's weights, as in Pillow
_HALF = _u(1 << 21)
_RED, _GREEN, _BLUE = _u(0), _u(8), _u(16)  # bits below each of a pixel's values


@njit(inline="always")
def _value(pixel: Any, channel: Any) -> Any:
    return _u(_u(pixel >> channel) & _u(255))


@Compiled
def filter_rows(pixels: Array, starts: Array, weights: Array, filtered: Array) -> None:
    """Make each row of a picture of a few others, as Pillow does along one axis: weighted, summed, rounded to bytes.

    Args:
        pixels: (H,W) uint32.
        starts: (height,) intp, the first row that each new one is made of.
        weights: (height,taps) uint32, times 2^22, of that and the next ones; together 2^22.
        filtered: (height,W) uint32, written.
    """
    num_taps = weights.shape[1]
    sums = np.empty((3, pixels.shape[1]), np.uint32)
    for y in range(len(starts)):
        if num_taps == 2:
            _mix_rows(pixels[starts[y]], pixels[starts[y] + 1], weights[y, 0], weights[y, 1], filtered[y])
            continue
        sums[:] = _HALF
        for tap in range(num_taps):
            _add_row(pixels[starts[y] + tap], weights[y, tap], sums[0], sums[1], sums[2])
        _round_row(sums[0], sums[1], sums[2], filtered[y])


@njit(inline="always")
def _mix_rows(upper: Array, lower: Array, upper_weight: Any, lower_weight: Any, mixed: Array) -> None:
    for x in range(len(mixed)):
        red = _mix(upper[x], lower[x], upper_weight, lower_weight, _RED)
        green = _mix(upper[x], lower[x], upper_weight, lower_weight, _GREEN)
        blue = _mix(upper[x], lower[x], upper_weight, lower_weight, _BLUE)
        mixed[x] = _pack(red, green, blue)


@njit(inline="always")
def _mix(upper: Any, lower: Any, upper_weight: Any, lower_weight: Any, channel: Any) -> Any:
    return _u(_u(_value(upper, channel) * upper_weight) + _u(_value(lower, channel) * lower_weight) + _HALF)


@njit(inline="always")
def _add_row(row: Array, weight: Any, red: Array, green: Array, blue: Array) -> None:
    for x in range(len(row)):
        red[x] += _u(_value(row[x], _RED) * weight)
        green[x] += _u(_value(row[x], _GREEN) * weight)
        blue[x] += _u(_value(row[x], _BLUE) * weight)


@njit(inline="always")
def _round_row(red: Array, green: Array, blue: Array, rounded: Array) -> None:
    for x in range(len(rounded)):
        rounded[x] = _pack(red[x], green[x], blue[x])


@njit(inline="always")
def _pack(red: Any, green: Any, blue: Any) -> Any:
    """Sums of weighted values; weights are not negative and add up to one, so that sums are below 256 once rounded."""
    return _u(_u(red >> _BITS) | _u(_u(green >> _BITS) << _GREEN) | _u(_u(blue >> _BITS) << _BLUE))


@Compiled
def split_channels(pixels: Array, planes: Array, top: int, mirrored: bool) -> None:
    """Write a picture (H,W) uint32, or its mirror image, into planes (3,height,width) uint8, from row ``top`` on."""
    last = np.uint64(pixels.shape[1] - 1)
    for y in range(len(pixels)):
        row, red, green, blue = pixels[y], planes[0, top + y], planes[1, top + y], planes[2, top + y]
        if mirrored:
            for x in range(len(row)):
                _split(row[last - np.uint64(x)], x, red, green, blue)
        else:
            for x in range(len(row)):
                _split(row[x], x, red, green, blue)


@njit(inline="always")
def _split(pixel: Any, x: int, red: Array, green: Array, blue: Array) -> None:
    red[x] = np.uint8(pixel)
    green[x] = np.uint8(_u(pixel >> _GREEN))
    blue[x] = np.uint8(_u(pixel >> _BLUE))


@Compiled
def take_nearest(integers: Array, rows: Array, columns: Array, taken: Array) -> None:
    """Write some rows and columns of a map, any of them several times.

    Args:
        integers: (H,W) of any type.
        rows: (height,) intp.
        columns: (width,) intp.
        taken: (height,width) of that type, written.
    """
    for y in range(len(rows)):
        if y and rows[y] == rows[y - 1]:
            taken[y] = taken[y - 1]
            continue
        row = integers[rows[y]]
        for x in range(len(columns)):
            taken[y, x] = row[np.uint64(columns[x])]  # unsigned: no index counts from the end


@Compiled
def count_bytes(words: Array, counts: Array) -> None:
    """Add to ``counts`` (256,) int64 how often each byte of ``words`` (n,) uint64 occurs."""
    byte, ones = np.uint64(255), np.uint64(0x0101010101010101)
    before, length = np.uint64(0), 0  # of words whose eight bytes are the same, as in a map most are
    for word in words:
        if word == before:
            length += 8
        elif word == (word & byte) * ones:
            counts[before & byte] += length
            before, length = word, 8
        else:
            for place in range(8):
                counts[(word >> np.uint64(8 * place)) & byte] += 1
    counts[before & byte] += length


@Compiled
def number_ids(ids: Array, known: Array, numbers: Array, numbered: Array) -> None:
    """Replace ids by numbers.

    Args:
        ids: (n,) int32.
        known: (k,) int64, ascending.
        numbers: (k,) of those, of any type.
        numbered: (n,) of that type, written: 0 where an id is not known.
    """
    before, number = np.int64(-1), numbers.dtype.type(0)
    for place in range(len(ids)):
        each = np.int64(ids[place])
        if each != before:
            before = each
            found = np.searchsorted(known, each)
            is_known = found < len(known) and known[found] == each
            number = numbers[found] if is_known else numbers.dtype.type(0)
        numbered[place] = number


@Compiled
def read_runs(text: Array, runs: Array) -> int:
    """Read COCO's compressed run lengths.

    Args:
        text: (n,) uint8.
        runs: (n,) int64, written.

    Returns:
        How many there are; 0 if they are no such text.
    """
    num_runs, run, shift = 0, np.int64(0), np.int64(0)
    for character in text:
        # From "0" on, five bits, lowest first, and a sixth that says whether another character follows.
        digit = np.int64(character) - 48
        if not 0 <= digit < 64 or shift > 30:  # seven of them are 32 bits
            return 0
        run |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:  # two's complement
                run -= np.int64(1) << shift
            if num_runs > 2:  # from the fourth on, the difference to the last but one
                run += runs[num_runs - 2]
            runs[num_runs] = run
            num_runs, run, shift = num_runs + 1, np.int64(0), np.int64(0)
    return 0 if shift else num_runs


@Compiled
def has_value_in_runs(runs: Array, values: Array) -> bool:
    """Whether any of ``values`` (n,) is not 0 within runs, (m,) int64 as ``paint_runs`` takes them."""
    start = 0
    for place in range(0, len(runs) - 1, 2):
        start += runs[place]
        for each in values[start : start + runs[place + 1]]:
            if each:
                return True
        start += runs[place + 1]
    return False


@Compiled
def paint_runs(runs: Array, number: int, values: Array) -> None:
    """Set ``values`` (n,) to a number within runs, (m,) int64: the lengths of a gap, a run, a gap, ... of at most n."""
    start = 0
    for place in range(0, len(runs) - 1, 2):
        start += runs[place]
        values[start : start + runs[place + 1]] = number
        start += runs[place + 1]
