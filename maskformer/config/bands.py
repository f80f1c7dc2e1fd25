"""The keys ``bands`` and ``range``, which say how pictures that are not plain become red, green and blue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from maskformer.structures import Bands, InputError


def read_bands(key: str, content: Mapping[str, Any]) -> Bands | None:
    """Check ``bands`` and ``range``.

    Args:
        key: where they stand, for messages.
        content: has them, or one of them, or neither.

    Returns:
        None: pictures are plain.

    Raises:
        InputError: one makes no sense.
    """
    numbers, limits = content.get("bands"), content.get("range")
    if numbers is not None and not (
        isinstance(numbers, list | tuple) and len(numbers) in (1, 3) and all(_is_band(number) for number in numbers)
    ):
        raise InputError(
            f"{key}.bands is {numbers!r}; expected the numbers of the three bands, from 1, that become red, green and "
            "blue, such as [4, 3, 2], for a model's images have three channels; or of one that becomes grey."
        )
    if limits is not None and not (
        isinstance(limits, list | tuple)
        and len(limits) == 2
        and all(isinstance(limit, int | float) and math.isfinite(limit) for limit in limits)
        and limits[0] < limits[1]
    ):
        raise InputError(f"{key}.range is {limits!r}; expected the values that become 0 and 255, such as [0, 3000].")
    if numbers is None and limits is None:
        return None
    return Bands(tuple(numbers or ()), None if limits is None else (float(limits[0]), float(limits[1])))


def _is_band(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1
