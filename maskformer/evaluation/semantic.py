"""Mean intersection over union."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from maskformer.data.reading import read_label_map
from maskformer.structures import InputError


class SemanticEvaluator(SemSegEvaluator):
    """Detectron2's evaluator, which explains a label or a model that does not fit the dataset.

    Args:
        dataset_name: registered, with ``stuff_classes`` and ``ignore_label``, and ``sem_seg_file_name`` in its entries.
        output_folder: where predictions and scores are written; None: nowhere.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        metadata = MetadataCatalog.get(dataset_name)
        self.num_classes = len(metadata.stuff_classes)
        read = partial(
            read_label_map,
            num_classes=self.num_classes,
            ignore_label=metadata.ignore_label,
            label_values=metadata.get("label_values"),
        )
        self._read_label = lru_cache(maxsize=1)(read)  # an image's label is looked at twice
        super().__init__(dataset_name, output_dir=output_folder, sem_seg_loading_fn=self._load_label)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of some images.

        Args:
            inputs: entries of the dataset; ``file_name`` is read.
            outputs: ``sem_seg`` (K,height,width) scores of each.

        Raises:
            InputError: the number of classes or the size differs from the label's.
        """
        for example, output in zip(inputs, outputs, strict=True):
            self._check(example["file_name"], tuple(output["sem_seg"].shape))
            super().process([example], [output])

    def _load_label(self, file_name: str, dtype: type) -> np.ndarray:
        return self._read_label(file_name).astype(dtype)

    def _check(self, file_name: str, shape: tuple[int, int, int]) -> None:
        num_classes, height, width = shape
        if num_classes != self.num_classes:
            raise InputError(
                f"The model predicts {num_classes} classes but the dataset has {self.num_classes}: set "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES to {self.num_classes}, with weights to match, or change DATASETS.TEST."
            )
        label_file = self.input_file_to_gt_file[file_name]
        label_height, label_width = self._read_label(label_file).shape
        if (height, width) != (label_height, label_width):
            raise InputError(
                f"Image file {file_name} is {width} x {height} pixels (width x height) but its label {label_file} is "
                f"{label_width} x {label_height}; expected equal sizes: prepare this label again (datasets/README.md)."
            )
