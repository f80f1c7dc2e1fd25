"""Mean intersection over union."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from maskformer.data.classes import dataset_ids, ignore_label_of, require
from maskformer.data.reading import read_label_map
from maskformer.data.run_lengths import encode_segments
from maskformer.evaluation.label_map import read_labels
from maskformer.structures import BadImageError


class SemanticEvaluator(SemSegEvaluator):
    """Detectron2's evaluator, faster, which also explains a label or a model that does not fit the dataset.

    It has the scores and writes the files of Detectron2's. Only the work on an image is done in another way.

    Args:
        dataset_name: registered, with ``stuff_classes`` and ``ignore_label``, and ``sem_seg_file_name`` in its entries.
        output_folder: where predictions and scores are written; None: nowhere.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        metadata = MetadataCatalog.get(dataset_name)
        self.num_classes = len(require(metadata, "stuff_classes"))
        ignore_label = ignore_label_of(metadata)
        self._read_label = partial(
            read_label_map,
            num_classes=self.num_classes,
            ignore_label=ignore_label,
            label_values=metadata.get("label_values"),
        )
        missing = ignore_label if metadata.get("ignore_label") is None else None  # else Detectron2 warns
        super().__init__(dataset_name, output_dir=output_folder, ignore_label=missing)
        self._contiguous_id_to_dataset_id = dataset_ids(dataset_name, self.num_classes)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of some images.

        Args:
            inputs: entries of the dataset; ``file_name`` is read.
            outputs: ``sem_seg`` of each: (K,height,width) scores or (height,width) labels.

        Raises:
            InputError: the number of classes or the size differs from the label's.
        """
        for example, output in zip(inputs, outputs, strict=True):
            self.add(self.measure(example, output))

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Compare one image with its label; see ``ImageEvaluator``."""
        file_name = example["file_name"]
        predicted = read_labels(output["sem_seg"], self.num_classes)
        label_file = self.input_file_to_gt_file[file_name]
        label = self._read_label(label_file)
        _check_size(file_name, predicted.shape, label_file, label.shape)
        predictions = [] if self._output_dir is None else self.encode_json_sem_seg(predicted, file_name)
        return {**self._count(predicted, label), "predictions": predictions}

    def add(self, measured: dict[str, Any]) -> None:
        """Count an image; see ``ImageEvaluator``."""
        for matrix, key in ((self._conf_matrix, "pairs"), (self._b_conf_matrix, "boundary_pairs")):
            codes, pixels = measured[key]
            matrix.ravel()[codes] += np.asarray(pixels, dtype=np.int64)
        self._predictions.extend(measured["predictions"])

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """Encode each class of an image as COCO's JSON has it.

        Args:
            sem_seg: (height,width) integers 0..K-1.
            input_file_name: of the image.

        Returns:
            An entry for each class that occurs, in rising order.
        """
        classes = np.flatnonzero(np.bincount(sem_seg.ravel())).tolist()
        ids = self._contiguous_id_to_dataset_id
        return [
            {"file_name": input_file_name, "category_id": ids[index], "segmentation": segmentation}
            for index, segmentation in encode_segments(sem_seg, classes).items()
        ]

    def _count(self, predicted: np.ndarray, label: np.ndarray) -> dict[str, list[list[int]]]:
        """Count the pixels of an image by predicted x true class, where "ignored" is the class after the last."""
        truth = np.where(label == self._ignore_label, self.num_classes, label)
        pairs = _count_values((self.num_classes + 1) * predicted.astype(np.int64) + truth)
        if not self._compute_boundary_iou:
            return {"pairs": pairs, "boundary_pairs": [[], []]}
        predicted_boundary = self._mask_to_boundary(predicted)
        true_boundary = self._mask_to_boundary(truth.astype(np.uint8))
        # Detectron2 computes this in eight bits, so that pairs above 255 wrap: the scores are to be the same.
        boundary_pairs = _count_values(np.uint8(self.num_classes + 1) * predicted_boundary + true_boundary)
        return {"pairs": pairs, "boundary_pairs": boundary_pairs}


def _count_values(values: np.ndarray) -> list[list[int]]:
    """The values that occur, rising, and how often each does."""
    counts = np.bincount(values.ravel())
    occurring = np.flatnonzero(counts)
    return [occurring.tolist(), counts[occurring].tolist()]


def _check_size(file_name: str, size: tuple[int, ...], label_file: str, label_size: tuple[int, ...]) -> None:
    if size != label_size:
        (height, width), (label_height, label_width) = size, label_size
        raise BadImageError(
            f"Image file {file_name} is {width} x {height} pixels (width x height) but its label {label_file} is "
            f"{label_width} x {label_height}; expected equal sizes: prepare this label again (datasets/README.md)."
        )
