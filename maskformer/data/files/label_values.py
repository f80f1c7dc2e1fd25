"""From the values or colours that a user's label files have for classes to 0..K-1."""

from __future__ import annotations

import numpy as np
from PIL import Image

from maskformer.structures import BadImageError, LabelValues

_MOST_LISTED = 12  # colours in a message


def means_colours(image: Image.Image, values: LabelValues) -> bool:
    """Whether a label file tells classes by colours, not by the numbers of one channel."""
    return bool(values.colors) and (image.mode in ("RGB", "RGBA") or (image.mode == "P" and values.by_palette))


def decode_values(label_map: np.ndarray, values: LabelValues, ignore_label: int, file_name: str) -> np.ndarray:
    """Replace the values of a file (H,W); as ``renumber``, but a value that means nothing is an error.

    Raises:
        BadImageError: there is one.
    """
    classes = renumber(label_map, values, ignore_label)
    if classes.min(initial=0) < 0:
        of_classes = values.of_classes
        raise BadImageError(
            f"Label file {file_name} holds the value {label_map[classes < 0].min()}; expected those of the "
            f"{len(of_classes)} classes ({min(of_classes)}..{max(of_classes)}) or an ignored one "
            f"({', '.join(map(str, values.ignored)) or 'none'}): correct classes, offset, ids or ignore of this "
            "dataset in DATASETS.OWN."
        )
    return classes


def decode_colours(numbers: np.ndarray, values: LabelValues, ignore_label: int, file_name: str) -> np.ndarray:
    """Replace the colours of a file, (H,W) of R + 256 G + 65536 B, likewise.

    Raises:
        BadImageError: a colour means nothing, or two classes have one.
    """
    if len(set(values.colors)) < len(values.colors):
        raise BadImageError(
            f"Label file {file_name} is coloured, but colors of this dataset in DATASETS.OWN gives two classes one "
            "colour; expected different ones, to tell classes by."
        )
    of_classes, ignored = (
        tuple(red | green << 8 | blue << 16 for red, green, blue in colors)
        for colors in (values.colors, values.ignored_colors)
    )
    classes = renumber(numbers, LabelValues(of_classes, ignored), ignore_label)
    if classes.min(initial=0) < 0:
        found, counts = np.unique(numbers[classes < 0], return_counts=True)
        number = int(found[counts.argmax()])
        raise BadImageError(
            f"Label file {file_name} holds the colour {[number & 255, number >> 8 & 255, number >> 16]} in "
            f"{counts.max()} pixels; expected those of the {len(of_classes)} classes "
            f"({_list(values.colors)}) or ignored ones ({_list(values.ignored_colors) or 'none'}): correct colors, or "
            "write ignore: [[red, green, blue]], of this dataset in DATASETS.OWN. Resizing or JPEG makes colours in "
            "between, which belong to no class."
        )
    return classes


def _list(colors: tuple[tuple[int, ...], ...]) -> str:
    more = ["..."] if len(colors) > _MOST_LISTED else []
    return ", ".join([*(str(list(color)) for color in colors[:_MOST_LISTED]), *more])


def renumber(label_map: np.ndarray, label_values: LabelValues, ignore_label: int) -> np.ndarray:
    """Replace the values of a file (H,W) by 0..K-1 and the ignored ones by ``ignore_label``.

    Returns:
        (H,W) int32; -1 where a value means nothing.
    """
    of_classes, ignored = label_values.of_classes, label_values.ignored
    known = np.array([*of_classes, *ignored])
    meanings = np.array([*range(len(of_classes)), *[ignore_label] * len(ignored)], dtype=np.int32)
    order = np.argsort(known)
    position = np.searchsorted(known[order], label_map).clip(max=len(known) - 1)
    return np.where(known[order][position] == label_map, meanings[order][position], np.int32(-1))
