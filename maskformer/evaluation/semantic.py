"""Mean intersection over union, of classes and of their boundaries."""

from __future__ import annotations

import itertools
import logging
import os
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata
from torch import Tensor

from maskformer.data.datasets.classes import dataset_ids, ignore_label_of, require
from maskformer.data.files.masks import encode_segments
from maskformer.data.files.reading import check_same_size, read_label_map, read_segment_ids
from maskformer.data.mappers.targets import category_map
from maskformer.kernels import best_classes
from maskformer.structures import InputError

from .confusion import (
    count_pixels,
    describe_confusion,
    describe_regions,
    measure_regions,
    score_pixels,
    sparse,
    sum_pixels,
    tabulate_classes,
)
from .evaluator import ImageEvaluator, Records

logger = logging.getLogger(__name__)

BOUNDARY_WIDTH = 0.02  # of the image's diagonal


class SemanticEvaluator(ImageEvaluator):
    """Scores and files of Detectron2's ``SemSegEvaluator``, with a boundary IoU that compares mask by mask.

    The dataset has ``stuff_classes`` in its metadata and ``sem_seg_file_name`` in its entries or, with
    ``sem_seg_of_segments`` in its metadata, panoptic labels alone, whose segments are areas of their categories, crowds
    too. ``sem_seg`` of an output is read: (K,height,width) scores or (height,width) labels.
    """

    switch = "SEMANTIC_ON"
    entry_key = "sem_seg_file_name"
    num_classes: int

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        super().__init__(dataset_name, output_folder)
        self._names = require(self.metadata, "stuff_classes")
        self.num_classes = len(self._names)
        self._ignore_label = ignore_label_of(self.metadata)
        self._dataset_ids = dataset_ids(dataset_name, self.num_classes)
        is_of_segments = self.metadata.get("sem_seg_of_segments")
        self._label_key = "pan_seg_file_name" if is_of_segments else "sem_seg_file_name"
        self._record_of_image = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}

    @classmethod
    def has_truth(cls, metadata: Metadata, records: Records) -> bool:
        """Whether entries have a semantic label, or a panoptic one that stands for it."""
        return bool(metadata.get("sem_seg_of_segments")) or super().has_truth(metadata, records)

    def check(self, records: Records) -> None:
        """Raise an ``InputError`` where an image of the dataset has no label."""
        for record in records:
            if record.get(self._label_key) is None:
                raise InputError(
                    f"Image {record['file_name']} has no {self._label_key}, which others of its dataset have; expected "
                    "one for each image of DATASETS.TEST."
                )

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Compare one image with its label; see ``ImageEvaluator``."""
        file_name = example["file_name"]
        predicted = read_labels(output["sem_seg"], self.num_classes)
        label = self._read_label(file_name)
        check_same_size(predicted, file_name, label, self._record_of_image[file_name][self._label_key])
        ignored = label == self._ignore_label
        # One type for both, which OpenCV knows too; "ignored" is the class after the last.
        dtype = np.uint8 if self.num_classes < 256 else np.uint16
        truth = np.where(ignored, self.num_classes, label).astype(dtype)
        shown = np.where(ignored, self.num_classes, predicted).astype(dtype)
        return {
            "pixels": count_pixels(predicted, truth, self.num_classes),
            "boundaries": [sparse(classes) for classes in _boundary_classes(shown, truth)],
            "regions": measure_regions(predicted, truth, self.num_classes),
            "predictions": [] if self.output_folder is None else self._encode(predicted, file_name),
        }

    def score(self, measured: list[Any]) -> dict[str, dict[str, float]]:
        """IoU of each class and its boundary, accuracies, and their means.

        A class that no label has is nan, and in no mean. Pixels that a label ignores count for nobody.
        """
        pixels = sum_pixels((image["pixels"] for image in measured), self.num_classes)
        boundaries = np.zeros((3, self.num_classes + 1), dtype=np.int64)  # see ``_boundary_classes``
        for image in measured:
            for counts, (values, numbers) in zip(boundaries, image["boundaries"], strict=True):
                counts[values] += np.array(numbers, dtype=np.int64)
        of_boundaries = _score_boundaries(boundaries[:, :-1].astype(float), pixels[:-1, :-1].sum(0))
        scores = self._score(pixels[:-1, :-1].astype(float), of_boundaries)
        self.details = {
            "per_class": {"sem_seg": [
                {**row, "BoundaryIoU": 100 * of_boundary}
                for of_boundary, row in zip(of_boundaries, tabulate_classes(pixels, self._names), strict=True)
            ]},
            "confusion": describe_confusion(pixels, self._names),
            "by_size": describe_regions([image["regions"] for image in measured]),
            "boundary": {metric: scores[metric] for metric in ("mIoU", "mBoundaryIoU")},
        }  # fmt: skip
        self._write("sem_seg_predictions.json", list(itertools.chain(*(image["predictions"] for image in measured))))
        if self.output_folder is not None:
            torch.save(scores, os.path.join(self.output_folder, "sem_seg_evaluation.pth"))
        logger.info("Semantic scores: %s", scores)
        return {"sem_seg": scores}

    def score_image(self, measured: Any) -> dict[str, dict[str, float]]:
        """Mean IoU over the classes that label or prediction have, and pixel accuracy; ignored pixels do not count."""
        return {"sem_seg": score_pixels(sum_pixels([measured["pixels"]], self.num_classes))}

    def truth(self, example: dict[str, Any]) -> dict[str, Any]:
        """The classes of the label, K where it is ignored."""
        label = self._read_label(example["file_name"])
        return {"sem_seg": torch.as_tensor(np.where(label == self._ignore_label, self.num_classes, label))}

    def _read_label(self, file_name: str) -> np.ndarray:
        record = self._record_of_image[file_name]
        label_file = record[self._label_key]
        if self._label_key == "pan_seg_file_name":
            return category_map(read_segment_ids(label_file), record["segments_info"], self._ignore_label)
        return read_label_map(label_file, self.num_classes, self._ignore_label, self.metadata.get("label_values"))

    def _score(self, pixels: np.ndarray, boundary_iou: np.ndarray) -> dict[str, float]:
        hits, labelled, predicted = pixels.diagonal(), pixels.sum(0), pixels.sum(1)
        iou = _ratio(hits, labelled + predicted - hits, labelled)
        accuracy = _ratio(hits, labelled, labelled)
        total = labelled.sum() or float("nan")  # not one labelled pixel
        seen = labelled > 0
        scores = {
            "mIoU": _mean(iou[seen]),
            "fwIoU": (iou[seen] * (labelled / total)[seen]).sum() if seen.any() else float("nan"),
            "mBoundaryIoU": _mean(boundary_iou[seen]),
        }
        for name, of_class, of_boundary in zip(self._names, iou, boundary_iou):
            scores[f"IoU-{name}"] = of_class
            scores[f"BoundaryIoU-{name}"] = of_boundary
            scores[f"min(IoU, B-Iou)-{name}"] = min(of_class, of_boundary)
        scores["mACC"] = _mean(accuracy[seen])
        scores["pACC"] = hits.sum() / total
        scores.update({f"ACC-{name}": of_class for name, of_class in zip(self._names, accuracy)})
        return {name: 100 * score for name, score in scores.items()}

    def _encode(self, labels: np.ndarray, file_name: str) -> list[dict[str, Any]]:
        """Each class that occurs, in rising order, as COCO's JSON has it."""
        classes = np.flatnonzero(np.bincount(labels.ravel())).tolist()
        return [
            {"file_name": file_name, "category_id": self._dataset_ids[index], "segmentation": segmentation}
            for index, segmentation in encode_segments(labels, classes).items()
        ]


def read_labels(semantic: Tensor, num_classes: int) -> np.ndarray:
    """The class of each pixel in a model's "sem_seg".

    Args:
        semantic: (K,height,width) scores, or (height,width) labels (``MODEL.MASK_FORMER.TEST.SEM_SEG_LABELS``).
        num_classes: K of the dataset.

    Returns:
        (height,width) uint8 where K allows it, else int16; of equal scores, the lower class.

    Raises:
        InputError: the model has another K.
    """
    has_scores = semantic.dim() == 3
    check_num_classes(len(semantic) if has_scores else max(int(semantic.max()) + 1, num_classes), num_classes)
    labels = best_classes(semantic.detach()) if has_scores else semantic
    return labels.to(torch.uint8 if num_classes <= 256 else torch.int16).cpu().numpy()


def check_num_classes(predicted: int, num_classes: int) -> None:
    """Compare K of a model with the dataset's.

    Raises:
        InputError: they differ.
    """
    if predicted != num_classes:
        raise InputError(
            f"The model predicts {predicted} classes but the dataset has {num_classes}: set "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES to {num_classes}, with weights to match, or change DATASETS.TEST."
        )


def _boundary_classes(predicted: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The classes of the pixels in the label's boundary regions, in the prediction's, and in both of one class.

    A pixel is in the boundary region of its class where another class, or the image's border, is at most 2 % of the
    diagonal away, in rows and in columns. So the regions of all classes come from one map of edges, instead of from a
    mask of each class. Where the label is ignored, both maps have one class for that.

    Source: Boundary IoU (arXiv 2103.16562), section 4. Outside of the image there is no mask, so its border bounds one.
    """
    of_label, of_predicted = _is_near_boundary(label), _is_near_boundary(predicted)
    common = of_label & of_predicted & (label == predicted)
    return label[of_label], predicted[of_predicted], label[common]


def _is_near_boundary(labels: np.ndarray) -> np.ndarray:
    """(height,width) bool: whether a pixel is in the boundary region of its class."""
    neighbours = np.ones((3, 3), dtype=np.uint8)
    edges = cv2.erode(labels, neighbours) != cv2.dilate(labels, neighbours)  # a neighbour has another class
    edges[[0, -1]], edges[:, [0, -1]] = True, True
    width = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*labels.shape))))
    # The way to another class leads over a pixel that has it as a neighbour, one step before.
    square = np.ones((2 * width - 1, 2 * width - 1), dtype=np.uint8)
    return cv2.dilate(edges.astype(np.uint8), square) > 0


def _score_boundaries(boundaries: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """(K,) boundary IoU of the pixels that ``_boundary_classes`` gives; nan for a class that is not labelled."""
    of_label, of_predicted, common = boundaries
    return _ratio(common, of_label + of_predicted - common, labelled)


def _ratio(part: np.ndarray, whole: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """(K,) quotients, nan for a class that is not labelled."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=labelled > 0)


def _mean(scores: np.ndarray) -> float:
    return scores.sum() / len(scores) if len(scores) else float("nan")
