"""Training examples from instance annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as rle
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from maskformer.structures import BadImageError, InputError

from ..files.json_files import check_annotation
from ..files.masks import read_runs
from ..transforms.augmentations import transform_map
from .base import Record, TrainingMapper, read_image
from .targets import instance_targets

Segmentation = list[Any] | dict[str, Any]


class MaskFormerInstanceDatasetMapper(TrainingMapper):
    """``mask_former_instance``: one mask of each annotated instance; masks may overlap, crowds are no targets."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read ``INPUT`` as all mappers do; there is no label map for the area limit of a crop."""
        arguments = super().from_config(cfg, is_train)
        limit = cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA
        if cfg.INPUT.CROP.ENABLED and limit < 1.0:
            raise InputError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {limit}; expected 1.0 with mask_former_instance, whose "
                "datasets have no semantic label to measure areas in."
            )
        return arguments

    def draw(self, dataset_dict: Record) -> Record:
        """Make the example of an image with ``annotations``; see the base class."""
        annotations = self._required(dataset_dict, "annotations")
        annotations = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        labelled = read_image(dataset_dict, self.image_format)
        for annotation in annotations:
            self._check(annotation, dataset_dict["file_name"], labelled.original_size)
        transforms = self.augmentations(labelled)
        size = labelled.shape
        layers = draw_layers([annotation["segmentation"] for annotation in annotations], transforms, size)
        padded = [self._pad(layer, 0) for layer in layers] or [self._pad(np.zeros(size, np.uint8), 0)]
        targets = instance_targets([annotation["category_id"] for annotation in annotations], np.stack(padded))
        return self._example(dataset_dict, labelled, *targets)

    def _check(self, annotation: dict[str, Any], image_file: str, size: tuple[int, int]) -> None:
        check_annotation(annotation, f"An annotation of image {image_file}", size, BadImageError)
        category = annotation["category_id"]
        if not 0 <= category < self.num_classes:
            raise BadImageError(
                f"An annotation of image {image_file} has the category {category}; expected 0..{self.num_classes - 1}: "
                "change MODEL.SEM_SEG_HEAD.NUM_CLASSES or correct the dataset's JSON."
            )


def draw_layers(
    segmentations: Sequence[Segmentation], transforms: T.Transform, size: tuple[int, int]
) -> list[np.ndarray]:
    """Draw annotated masks on the transformed image, each on the first layer that it finds free.

    Args:
        segmentations: of each instance polygons [x0, y0, x1, y1, ...], or COCO's compressed RLE, in pixels of the
            original image.
        transforms: what the augmentation did to the image.
        size: (height, width) of the transformed image.

    Returns:
        Maps (height, width) of integers: g + 1 where instance g is, 0 elsewhere.
    """
    numbered = list(enumerate(segmentations, start=1))
    bitmaps = [(number, rle) for number, rle in numbered if isinstance(rle, dict)]
    outlines = [
        (number, _encode(polygons, transforms, size)) for number, polygons in numbered if not isinstance(polygons, dict)
    ]
    # Bitmaps move after they are drawn, all of a layer at once; polygons before, by their corners.
    moved = [transform_map(transforms, layer) for layer in _lay(bitmaps, len(numbered))]
    return moved + _lay(outlines, len(numbered))


def _encode(polygons: list[Any], transforms: T.Transform, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's RLE of transformed polygons."""
    # Corners may lie outside a crop: drawing clips them, so no polygon library is needed.
    corners = [transforms.apply_coords(np.array(polygon, dtype=np.float64).reshape(-1, 2)) for polygon in polygons]
    if not corners:
        return rle.encode(np.zeros(size, dtype=np.uint8, order="F"))
    return rle.merge(rle.frPyObjects([polygon.reshape(-1) for polygon in corners], *size))


def _lay(encoded: Sequence[tuple[int, dict[str, Any]]], highest: int) -> list[np.ndarray]:
    """Lay numbered masks on as many maps as they need to stay apart; numbers go up to ``highest``."""
    layers: list[np.ndarray] = []
    for number, mask in encoded:
        runs = read_runs(mask["counts"])
        assert runs is not None, "checked before"
        is_inside = np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs)
        is_inside = is_inside.reshape(mask["size"], order="F")  # COCO counts down the columns
        layer = next((layer for layer in layers if not (layer * is_inside).any()), None)
        if layer is None:
            layer = np.zeros_like(is_inside, dtype=np.uint8 if highest <= 255 else np.int32)
            layers.append(layer)
        layer += is_inside * layer.dtype.type(number)
    return [np.ascontiguousarray(layer) for layer in layers]
