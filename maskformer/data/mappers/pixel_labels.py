"""Training examples from labels of each pixel, semantic or panoptic."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskformer.structures import BadImageError

from ..files.reading import check_same_size, read_segment_ids
from ..transforms.augmentations import LabelledImage, detr_recipe, transform_map
from .base import Record, TrainingMapper, owned_tensor, read_image
from .targets import category_map, number_annotated_segments, panoptic_targets, semantic_targets


class MaskFormerSemanticDatasetMapper(TrainingMapper):
    """``mask_former_semantic``: one segment of each class that the crop shows."""

    def draw(self, dataset_dict: Record) -> Record:
        """Make the example of an image with ``sem_seg_file_name``; see the base class."""
        labelled = read_image(dataset_dict, self.image_format)
        labelled.sem_seg = self._read_label_map(dataset_dict, labelled)
        self.augmentations(labelled)
        label_map = self._pad(labelled.sem_seg, self.ignore_label)
        labels, masks = semantic_targets(label_map, self.ignore_label)
        example = self._example(dataset_dict, labelled, labels, masks)
        example["sem_seg"] = owned_tensor(label_map)
        return example


class MaskFormerPanopticDatasetMapper(TrainingMapper):
    """``mask_former_panoptic``: one segment of each thing and each stuff class; crowds are no targets.

    The crop avoids one category over the area limit by the dataset's semantic label or, where it has none, by the
    categories of the segments.
    """

    def draw(self, dataset_dict: Record) -> Record:
        """Make the example of an image with ``pan_seg_file_name`` and ``segments_info``; see the base class."""
        labelled = read_image(dataset_dict, self.image_format)
        segment_map, segments = self._read_segments(dataset_dict, labelled)
        label_map = self._read_label_map(dataset_dict, labelled) if "sem_seg_file_name" in dataset_dict else None
        labelled.sem_seg = category_map(segment_map, segments, self.ignore_label) if label_map is None else label_map
        transforms = self.augmentations(labelled)
        segment_map = self._pad(transform_map(transforms, segment_map), 0)
        labels, masks = panoptic_targets(segment_map, segments)
        example = self._example(dataset_dict, labelled, labels, masks)
        if label_map is not None:
            example["sem_seg"] = owned_tensor(self._pad(labelled.sem_seg, self.ignore_label))
        return example

    def _read_segments(self, record: Record, image: LabelledImage) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Read the panoptic label: (H,W) segment numbers, and ``id`` and ``category_id`` of each that is no crowd."""
        label_file = self._required(record, "pan_seg_file_name")
        annotated = self._required(record, "segments_info")
        segments = [segment for segment in annotated if not segment.get("iscrowd", 0)]
        for segment in segments:
            if not 0 <= segment["category_id"] < self.num_classes:
                raise BadImageError(
                    f"Segment {segment['id']} of {label_file} has the category {segment['category_id']}; expected "
                    f"0..{self.num_classes - 1}: change MODEL.SEM_SEG_HEAD.NUM_CLASSES or correct the dataset's JSON."
                )
        id_map = read_segment_ids(label_file)
        check_same_size(image, record["file_name"], id_map, label_file)
        segment_map, _ = number_annotated_segments(id_map, annotated, label_file)
        segment_map[segment_map > len(segments)] = 0  # crowds
        return segment_map, [{**segment, "id": number} for number, segment in enumerate(segments, start=1)]


class DETRPanopticDatasetMapper(MaskFormerPanopticDatasetMapper):
    """``detr_panoptic``: the same targets, augmented as DETR does."""

    recipe = staticmethod(detr_recipe)
