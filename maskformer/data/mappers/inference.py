"""Inputs for evaluation: the image alone."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from ..files.reading import check_declared_size, read_picture
from ..transforms.augmentations import LabelledImage, ResizedCrop, build_resize
from .example import Record, image_example, image_tensor


class InferenceMapper:
    """Reads and resizes an image; evaluators read the labels themselves.

    Args:
        resize: of the shortest edge.
        image_format: "RGB" or "BGR".
    """

    @configurable
    def __init__(self, *, resize: T.Augmentation, image_format: str):
        self.resize = resize
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``INPUT.MIN_SIZE_TEST`` (0: no resizing), ``INPUT.MAX_SIZE_TEST`` and ``INPUT.FORMAT``."""
        resize = ResizedCrop(build_resize([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, "choice"))
        return {"resize": resize, "image_format": cfg.INPUT.FORMAT}

    def __call__(self, dataset_dict: Record) -> Record:
        """Make the network's input: ``image`` (3,H,W) uint8, original ``height`` and ``width``, and the names."""
        labelled = LabelledImage(read_picture(dataset_dict["file_name"]), image_format=self.image_format)
        original_size = labelled.shape
        check_declared_size(dataset_dict, labelled)
        self.resize(labelled)
        return image_example(dataset_dict, original_size, image_tensor(labelled.image))
