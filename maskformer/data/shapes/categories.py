"""The categories of the built-in dataset: things first, then stuff."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """One category of the dataset.

    Attributes:
        name: how it is shown.
        color: RGB, 0..255, for drawing labels; not the colour it has in the images.
        is_thing: whether its segments are counted one by one.
    """

    name: str
    color: tuple[int, int, int]
    is_thing: bool


CATEGORIES = (
    Category("ball", (226, 68, 62), True),
    Category("box", (245, 148, 40), True),
    Category("triangle", (142, 84, 212), True),
    Category("star", (255, 236, 96), True),
    Category("ring", (240, 110, 200), True),
    Category("sky", (139, 190, 235), False),
    Category("water", (46, 117, 182), False),
    Category("grass", (96, 169, 84), False),
    Category("sand", (219, 197, 147), False),
)
THINGS = tuple(category for category in CATEGORIES if category.is_thing)
INDEX_OF = {category.name: index for index, category in enumerate(CATEGORIES)}


def dataset_id(index: int) -> int:
    """The category id in the JSON files for a contiguous index: they count from 1."""
    return index + 1
