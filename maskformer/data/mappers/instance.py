"""Training examples from instance annotations."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pycocotools.mask as rle
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from maskformer.data.annotations import find_fault
from maskformer.data.augmentations import transform_map
from maskformer.data.mappers.example import Record
from maskformer.data.mappers.training import TrainingMapper
from maskformer.data.targets import instance_targets
from maskformer.structures import BadImageError, InputError


class MaskFormerInstanceDatasetMapper(TrainingMapper):
    """``mask_former_instance``: one mask of each annotated instance; masks may overlap, crowds are no targets."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read ``INPUT`` as all mappers do; there is no label map for the area limit of a crop."""
        limit = cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA
        if cfg.INPUT.CROP.ENABLED and limit < 1.0:
            raise InputError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {limit}; expected 1.0 with mask_former_instance, whose "
                "datasets have no semantic label to measure areas in."
            )
        return super().from_config(cfg, is_train)

    def __call__(self, dataset_dict: Record) -> Record:
        """Make the example of an image with ``annotations``; see the base class."""
        annotations = self._required(dataset_dict, "annotations")
        annotations = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        labelled = self._read_image(dataset_dict)
        original_size = labelled.picture.size
        for annotation in annotations:
            self._check(annotation, dataset_dict["file_name"], original_size)
        transforms = self.augmentations(labelled)
        image = labelled.image
        size = self._pad(image[..., 0], 0).shape
        masks = [draw_mask(annotation["segmentation"], transforms, image.shape[:2]) for annotation in annotations]
        classes = [annotation["category_id"] for annotation in annotations]
        targets = instance_targets(classes, [self._pad(mask, 0) for mask in masks], size)
        return self._example(dataset_dict, original_size, image, *targets)

    def _check(self, annotation: dict[str, Any], image_file: str, size: tuple[int, int]) -> None:
        segmentation, category = annotation.get("segmentation"), annotation["category_id"]
        if not isinstance(segmentation, (list, dict)):
            raise InputError(
                f"An annotation of image {image_file} has no mask (segmentation); expected polygons or RLE: train on "
                "a dataset with masks (DATASETS.TRAIN)."
            )
        fault = find_fault(annotation, size)
        if fault:
            raise BadImageError(
                f"An annotation of image {image_file} {fault}: correct the dataset's JSON or restore the image."
            )
        if not 0 <= category < self.num_classes:
            raise BadImageError(
                f"An annotation of image {image_file} has the category {category}; expected 0..{self.num_classes - 1}: "
                "change MODEL.SEM_SEG_HEAD.NUM_CLASSES or correct the dataset's JSON."
            )


def draw_mask(segmentation: list[Any] | dict[str, Any], transforms: T.Transform, size: tuple[int, int]) -> np.ndarray:
    """Draw an annotated mask on the transformed image.

    Args:
        segmentation: polygons [x0, y0, x1, y1, ...], or COCO's compressed RLE, in pixels of the original image.
        transforms: what the augmentation did to the image.
        size: (height, width) of the transformed image.

    Returns:
        (height, width) uint8, 1 inside.
    """
    if isinstance(segmentation, dict):
        return transform_map(transforms, _decode(segmentation))
    # Corners may lie outside a crop: drawing clips them, so no polygon library is needed.
    corners = [transforms.apply_coords(np.array(polygon, dtype=np.float64).reshape(-1, 2)) for polygon in segmentation]
    if not corners:
        return np.zeros(size, dtype=np.uint8)
    outlines = rle.frPyObjects([polygon.reshape(-1) for polygon in corners], *size)
    return _decode(rle.merge(outlines))


def _decode(encoded: dict[str, Any]) -> np.ndarray:
    """(height, width) uint8 in rows; COCO's masks come in columns, which NumPy turns ten times slower than OpenCV."""
    return cv2.transpose(rle.decode(encoded).T)
