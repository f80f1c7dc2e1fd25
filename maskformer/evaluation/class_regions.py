"""Panoptic quality of a semantic segmentation: the region of each class in an image is one segment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NO_CLASS = -1  # in a label: ignored; in a prediction: nothing was said


@dataclass(frozen=True)
class RegionCounts:
    """What was matched, by class; counts of several images add up.

    Attributes:
        iou: (K,) sum of the IoU of matched segments.
        matched: (K,) segments in both label and prediction, with an IoU above 1/2.
        invented: (K,) predicted segments that match none.
        missed: (K,) labelled segments that match none.
    """

    iou: np.ndarray
    matched: np.ndarray
    invented: np.ndarray
    missed: np.ndarray

    @classmethod
    def none(cls, num_classes: int) -> RegionCounts:
        """The counts of no image."""
        return cls(np.zeros(num_classes), *(np.zeros(num_classes, dtype=np.int64) for _ in range(3)))

    def __add__(self, other: RegionCounts) -> RegionCounts:
        return RegionCounts(
            self.iou + other.iou,
            self.matched + other.matched,
            self.invented + other.invented,
            self.missed + other.missed,
        )

    def scores(self) -> dict[str, float]:
        """PQ, SQ and RQ in percent: means over the classes that label or prediction have; nan where there is none."""
        seen = self.matched + self.invented + self.missed > 0
        if not seen.any():
            return dict.fromkeys(("PQ", "SQ", "RQ"), float("nan"))
        iou, matched = self.iou[seen], self.matched[seen]
        weights = matched + (self.invented[seen] + self.missed[seen]) / 2
        quality = {"PQ": iou / weights, "SQ": iou / np.maximum(matched, 1), "RQ": matched / weights}
        return {name: 100 * float(values.mean()) for name, values in quality.items()}


def count_regions(predicted: np.ndarray, label: np.ndarray, num_classes: int) -> RegionCounts:
    """Compare two class maps of one image.

    Args:
        predicted: (height,width) integers, 0..K-1 or ``NO_CLASS``.
        label: likewise; pixels of ``NO_CLASS`` count for nobody, and a predicted segment more than half on them is
            not counted as invented.
        num_classes: K.

    Source: Panoptic Segmentation (arXiv 1801.00868), section 4.1.
    """
    side = num_classes + 1
    pairs = (predicted.astype(np.int64).ravel() + 1) * side + (label.astype(np.int64).ravel() + 1)
    pixels = np.bincount(pairs, minlength=side * side).reshape(side, side)  # [predicted + 1, label + 1]
    intersection = pixels.diagonal()[1:]
    predicted_area, label_area = pixels.sum(1)[1:], pixels.sum(0)[1:]
    ignored_area = pixels[1:, 0]
    union = predicted_area + label_area - intersection - ignored_area
    iou = intersection / np.maximum(union, 1)
    matched = iou > 0.5
    return RegionCounts(
        iou=np.where(matched, iou, 0.0),
        matched=matched.astype(np.int64),
        invented=((predicted_area > 0) & ~matched & (2 * ignored_area <= predicted_area)).astype(np.int64),
        missed=((label_area > 0) & ~matched).astype(np.int64),
    )
