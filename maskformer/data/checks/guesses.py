"""Why label files hold values that mean nothing, guessed from which they are, in how many files and how large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from maskformer.structures import LabelValues

T = TypeVar("T", int, tuple[int, ...])

LEAST_BLURRED = 3  # values without an area, from which on they are blurred edges and not thin objects
_BLURRED_AREA = 0.2  # of the pixels of such a value have four neighbours alike; of a class or an object, nearly all
_NEARLY_ALL = 0.9  # of the files
_SHOWN = 5


@dataclass
class ValueCount:
    """How often a value was seen.

    Attributes:
        pixels: that have it; where there are instances alone, annotations.
        inner: those whose four neighbours have it too.
        images: that hold it.
        first: the label file of the first.
    """

    pixels: int = 0
    inner: int = 0
    images: int = 0
    first: str = ""

    @property
    def is_blurred(self) -> bool:
        """Whether only edges have it: what JPEG and interpolation leave, or a thin border."""
        return self.inner < _BLURRED_AREA * self.pixels

    def add(self, other: ValueCount) -> None:
        """Add what was seen of the value elsewhere."""
        self.pixels += other.pixels
        self.inner += other.inner
        self.images += other.images
        self.first = self.first or other.first


def list_values(values: Iterable[int]) -> str:
    """Some integers, the first few of many: ``0, 1, 2, ... (34 in all, up to 200)``."""
    values = sorted(values)
    if len(values) <= _SHOWN + 1:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[:_SHOWN]))}, ... ({len(values)} in all, up to {values[-1]})"


def find_blurred(foreign: Mapping[T, ValueCount]) -> set[T]:
    """The values or colours, of those that are no class, that only edges have, if there are several and most are so."""
    blurred = {value for value, count in foreign.items() if count.is_blurred}
    return blurred if len(blurred) >= max(LEAST_BLURRED, len(foreign) / 2) else set()


def looks_like_mask(values: Mapping[int, ValueCount], numbering: LabelValues) -> bool:
    """Whether labels of one or two classes hold 0 and 255 alone, of which 255 is ignored."""
    return (
        set(values) == {0, 255}
        and numbering.of_classes in ((0,), (0, 1))
        and 255 in numbering.ignored
        and 2 * values[255].images >= values[0].images
    )


def guess_remedy(
    values: Mapping[int, ValueCount], numbering: LabelValues, names: list[str], num_labels: int, block: str
) -> str:
    """What to change so that every value is a class or ignored, as the end of a sentence.

    Args:
        values: that were seen, blurred ones left out; some are neither a class nor ignored.
        numbering: what the values should be.
        names: of the classes.
        num_labels: how many label files were looked at.
        block: what of ``DATASETS.OWN`` describes the dataset and can be changed; empty: nothing does.
    """
    guess = _guess_numbering(values, numbering, names, num_labels) or _guess_by_count(values, numbering, num_labels)
    if block:
        return f"{guess} ({block})"
    return f"labels are of another dataset or not prepared (datasets/README.md); as docs/own_data.md has it: {guess}"


def _guess_numbering(
    values: Mapping[int, ValueCount], numbering: LabelValues, names: list[str], num_labels: int
) -> str | None:
    """Classes that are numbered in another way: from 1, in steps, by a list."""
    of_classes, ignored = numbering.of_classes, numbering.ignored
    num_classes, first, last = len(of_classes), min(of_classes), max(of_classes)
    foreign = values.keys() - {*of_classes, *ignored}
    if num_classes == 1 and len(values) == 2 and 0 in values:
        return guess_mask(max(values), names[0])
    is_counted = last - first + 1 == num_classes
    if is_counted and foreign == {last + 1} and first not in values:
        return f"`offset: {first + 1}`, for the classes are numbered from {first + 1}?"
    if is_counted and foreign == {last + 1} and not values.keys() & set(ignored) and num_classes > 1:
        return _guess_end(values, first, last + 1, num_labels)
    if is_counted and foreign == {first - 1} and last not in values:
        return f"`offset: {first - 1}`, or `ignore: {first - 1}` if these pixels have no class?"
    return _guess_list(values, ignored, num_classes)


def guess_mask(value: int, name: str) -> str:
    """What to write for masks of one object, which have 0 around it."""
    ids = "" if value == 1 else f" with `ids: [0, {value}]`"
    return f"`classes: [background, {name}]`{ids}, for 0 is what is around {name}?"


def _guess_end(values: Mapping[int, ValueCount], first: int, extra: int, num_labels: int) -> str:
    """Of one value too many in a row, whether the first or the last is no class; in doubt, the last."""
    at_start = f"`offset: {first + 1}` and `ignore: {first}`"
    if values[first].images >= _NEARLY_ALL * num_labels > values[extra].images:
        return f"{at_start}, if {first} means no class, or `ignore: {extra}`, if {extra} does?"
    return f"`ignore: {extra}`, if {extra} means no class, or {at_start}, if {first} does?"


def _guess_list(values: Mapping[int, ValueCount], ignored: tuple[int, ...], num_classes: int) -> str | None:
    seen = sorted(values)
    step = math.gcd(*seen)
    if step > 1 and len(seen) > 2 and seen[-1] <= num_classes * step:
        has_room = seen[-1] == num_classes * step
        ids = list(range(step if has_room else 0, (num_classes + has_room) * step, step))
        around = " and `ignore: 0`" if has_room and 0 in values else ""
        return f"`ids: {_short(ids)}`{around}, for values are in steps of {step}?"
    for candidates in ([value for value in seen if value not in ignored], seen):
        foreign = [value for value in candidates if value >= num_classes]
        if len(candidates) == num_classes > 1 and 2 * len(foreign) >= num_classes:
            return f"`ids: {_short(candidates)}`, in the order of `classes`?"
        if len(candidates) == num_classes + 1 and candidates[0] == 0 and len(foreign) > 1:
            return f"`ids: {_short(candidates[1:])}`, in the order of `classes`, and `ignore: 0`?"
    return None


def _short(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"[{', '.join(map(str, ids[:4]))}, ..., {ids[-1]}]"


def _guess_by_count(values: Mapping[int, ValueCount], numbering: LabelValues, num_labels: int) -> str:
    num_classes = len(numbering.of_classes)
    foreign = sorted(values.keys() - {*numbering.of_classes, *numbering.ignored})
    if len(foreign) == 1:
        ignored = [*sorted(values.keys() & set(numbering.ignored)), foreign[0]]
        key = f"`ignore: {foreign[0] if len(ignored) == 1 else ignored}`"
        if values[foreign[0]].images >= num_labels / 2:
            return f"{key}?"
        return f"{key}, if these pixels have no class, or else a class is missing in `classes`?"
    seen = sorted(values.keys() - set(numbering.ignored))
    if num_classes == 1 and len(seen) > 2 and _look_like_objects(values):
        return "are they numbers of objects (then write `objects` in place of `labels`), or is a class missing?"
    if foreign[-1] >= 1000:
        return "are they numbers of objects, such as 1000 * class + number, or 256 * class? Keep the class alone."
    if seen[0] == 0 and len(foreign) < len(seen) and seen[-1] < 2 * len(seen):
        return f"values go up to {seen[-1]}, but `classes` has {num_classes} names: are some missing?"
    return f"`classes` has {num_classes} names, but labels hold {len(seen)} values: are they of another dataset?"


def _look_like_objects(values: Mapping[int, ValueCount]) -> bool:
    """Whether values go up from 1, and no file has a value that more files have than the one before."""
    numbers = [value for value in values if value > 0]
    images = [values[value].images for value in numbers]
    return numbers == list(range(1, len(numbers) + 1)) and images == sorted(images, reverse=True)
