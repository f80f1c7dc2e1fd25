"""Training examples from semantic labels."""

from __future__ import annotations

from ..files.reading import check_same_size, read_label_map
from .base import Record, TrainingMapper, owned_tensor
from .targets import semantic_targets


class MaskFormerSemanticDatasetMapper(TrainingMapper):
    """``mask_former_semantic``: one segment of each class that the crop shows."""

    def __call__(self, dataset_dict: Record) -> Record:
        """Make the example of an image with ``sem_seg_file_name``; see the base class."""
        label_file = self._required(dataset_dict, "sem_seg_file_name")
        labelled = self._read_image(dataset_dict)
        original_size = labelled.shape
        values = dataset_dict.get("label_values")
        label_map = read_label_map(label_file, self.num_classes, self.ignore_label, values)
        check_same_size(labelled, dataset_dict["file_name"], label_map, label_file)
        labelled.sem_seg = label_map
        self.augmentations(labelled)
        label_map = self._pad(labelled.sem_seg, self.ignore_label)
        labels, masks = semantic_targets(label_map, self.ignore_label)
        example = self._example(dataset_dict, original_size, labelled.image, labels, masks)
        example["sem_seg"] = owned_tensor(label_map)
        return example
