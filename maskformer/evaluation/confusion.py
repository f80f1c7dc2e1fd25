"""What is taken for what: pixels and objects by class, of single images and of all, and by size.

Classes are numbered 0..K-1 throughout; K is none: ignored pixels, missed objects, objects that are not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from .results import SIZE_LIMITS, SIZES, size_of

Sparse = Sequence[Sequence[int]]  # values that occur, and how often each does
# Category of a true object, that of the prediction which covers it, the true area in pixels, IoU. Without an object, or
# without a prediction, None stands for what there is not. JSON makes a list of it.
ObjectRow = tuple[Any, Any, Any, Any]

REGION_SAMPLES = 256  # along the longer side of an image, at which the sizes of regions are measured


def sparse(values: np.ndarray) -> list[list[int]]:
    """The values that occur, rising, and how often each does."""
    counts = np.bincount(values.ravel())
    occurring = np.flatnonzero(counts)
    return [occurring.tolist(), counts[occurring].tolist()]


def count_pixels(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> list[list[int]]:
    """Count the pixels of each pair of classes of one image.

    Args:
        predicted: (height,width) 0..K-1.
        truth: (height,width) 0..K.
        num_classes: K.

    Returns:
        See ``sparse``; a value is predicted class x (K + 1) + true class.
    """
    return sparse(predicted.astype(np.int64) * (num_classes + 1) + truth.astype(np.int64))


def sum_pixels(counts: Iterable[Sparse], num_classes: int) -> np.ndarray:
    """(K+1,K+1) int64 pixels by predicted and true class, of what ``count_pixels`` gave of images."""
    pixels = np.zeros((num_classes + 1) ** 2, dtype=np.int64)
    for values, numbers in counts:
        pixels[values] += np.array(numbers, dtype=np.int64)
    return pixels.reshape(num_classes + 1, num_classes + 1)


def score_pixels(pixels: np.ndarray) -> dict[str, float]:
    """Give mIoU over the classes that label or prediction have, and pixel accuracy; nan where no pixel is labelled.

    Args:
        pixels: see ``sum_pixels``. What the label ignores counts for nobody.
    """
    labelled = pixels[:-1, :-1]
    hits, union = labelled.diagonal(), labelled.sum(0) + labelled.sum(1) - labelled.diagonal()
    if not labelled.any():
        return {"mIoU": float("nan"), "pACC": float("nan")}
    iou = hits[union > 0] / union[union > 0]
    return {"mIoU": 100 * float(iou.mean()), "pACC": 100 * float(hits.sum() / labelled.sum())}


def tabulate_classes(pixels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """IoU, accuracy and labelled pixels of each class; nan for one that no label has.

    Args:
        pixels: see ``sum_pixels``.
        names: K.
    """
    labelled = pixels[:-1, :-1]
    rows = []
    for index, name in enumerate(names):
        hits, true, predicted = (
            int(n) for n in (labelled[index, index], labelled[:, index].sum(), labelled[index].sum())
        )
        iou = 100 * hits / (true + predicted - hits) if true else float("nan")
        rows.append({"class": name, "IoU": iou, "ACC": 100 * hits / true if true else float("nan"), "pixels": true})
    return rows


def describe_confusion(pixels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What ``evaluation.json`` has of ``sum_pixels``: [true class, predicted class, pixels] of the pairs that occur."""
    counts = pixels.T
    pairs = [[true, predicted, int(counts[true, predicted])] for true, predicted in np.argwhere(counts).tolist()]
    return {"unit": "pixels", "classes": list(names), "counts": pairs}


def measure_regions(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> list[list[int]]:
    """Count the pixels that are right in connected regions of one class, by the size of the region.

    Both maps are read at every nth pixel in both directions, which is exact up to ``REGION_SAMPLES`` pixels a side.

    Args:
        predicted: (height,width) 0..K-1.
        truth: (height,width) 0..K.
        num_classes: K, of which no region is.

    Returns:
        Of each of ``SIZES``: regions, right samples, samples.
    """
    step = max(1, round(max(truth.shape) / REGION_SAMPLES))
    truth, predicted = np.ascontiguousarray(truth[::step, ::step]), predicted[::step, ::step]
    height, width = truth.shape
    # Pixels are every second cell of a grid; a cell between two of them is open where they have one class.
    grid = np.zeros((2 * height - 1, 2 * width - 1), dtype=np.uint8)
    grid[::2, ::2] = truth != num_classes
    grid[1::2, ::2] = (truth[1:] == truth[:-1]) & (truth[1:] != num_classes)
    grid[::2, 1::2] = (truth[:, 1:] == truth[:, :-1]) & (truth[:, 1:] != num_classes)
    count, numbers = cv2.connectedComponents(grid, connectivity=4)
    region = numbers[::2, ::2]
    samples = np.bincount(region.ravel(), minlength=count)[1:]  # 0: no region
    right = np.bincount(region[predicted == truth], minlength=count)[1:]
    size = np.searchsorted(SIZE_LIMITS, samples * step**2, side="right")
    return [[int((size == s).sum()), int(right[size == s].sum()), int(samples[size == s].sum())] for s in range(3)]


def describe_regions(images: Iterable[Sequence[Sequence[int]]]) -> list[dict[str, Any]]:
    """Pixel accuracy by the size of regions, of what ``measure_regions`` gave of images."""
    totals = np.zeros((len(SIZES), 3), dtype=np.int64)
    for image in images:
        totals += np.array(image)
    return [
        {
            "kind": "sem_seg",
            "measure": "pACC in regions of this size",
            "size": size,
            "objects": regions,
            "score": 100 * right / samples if samples else float("nan"),
        }
        for size, (regions, right, samples) in zip(SIZES, totals.tolist(), strict=True)
    ]


def score_objects(rows: Iterable[ObjectRow]) -> float:
    """Panoptic quality in percent of the objects of one image, all classes together; nan where there is none.

    Args:
        rows: of the true objects, and of the predictions that cover none.
    """
    overlaps, found, others = 0.0, 0, 0
    for true, predicted, _, iou in rows:
        if true is not None and true == predicted:
            overlaps, found = overlaps + iou, found + 1
        else:
            others += (true is not None) + (predicted is not None)
    return 100 * overlaps / (found + others / 2) if found + others else float("nan")


def confuse_objects(rows: Iterable[ObjectRow], classes: Mapping[int, int], names: Sequence[str]) -> dict[str, Any]:
    """What ``evaluation.json`` has of objects: [true class, predicted class, objects].

    Args:
        rows: of all images, see ``score_objects``.
        classes: category -> class 0..K-1.
        names: K.
    """
    nothing = len(names)
    counts = Counter(tuple(nothing if category is None else classes[category] for category in row[:2]) for row in rows)
    return {"unit": "segments", "classes": list(names), "counts": [[*pair, counts[pair]] for pair in sorted(counts)]}


def score_objects_by_size(rows: Iterable[ObjectRow]) -> list[dict[str, Any]]:
    """How many objects are found, and how well, by the size of the true object; nan where there is none."""
    overlaps: list[list[float]] = [[] for _ in SIZES]  # 0: not found
    for true, predicted, area, iou in rows:
        if true is not None:
            overlaps[size_of(area)].append(iou if true == predicted else 0.0)
    described = []
    for size, of_size in zip(SIZES, overlaps, strict=True):
        found = [iou for iou in of_size if iou]
        common = {"kind": "panoptic_seg", "size": size, "objects": len(of_size)}
        recall = 100 * len(found) / len(of_size) if of_size else float("nan")
        described.append({"measure": "recall at IoU > 0.5", **common, "score": recall})
        mean = 100 * sum(found) / len(found) if found else float("nan")
        described.append({"measure": "mean IoU of found segments", **common, "score": mean})
    return described
