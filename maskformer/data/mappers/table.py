"""The mappers by name, among them those with large-scale jitter."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from maskformer.structures import InputError

from ..transforms.augmentations import build_flip, large_scale_jitter_recipe
from .base import InferenceMapper, TrainingMapper
from .instance import MaskFormerInstanceDatasetMapper
from .pixel_labels import (
    DETRPanopticDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)


class LargeScaleJitter(TrainingMapper):
    """A mapper whose examples are squares of ``INPUT.IMAGE_SIZE`` pixels, cut from images of very different scales.

    Source: Simple Copy-Paste (arXiv 2012.07177), section 3, "large scale jittering".
    """

    @classmethod
    def shape_options(cls, cfg: CfgNode, ignore_label: int) -> dict[str, Any]:  # noqa: ARG003
        """Read ``INPUT.IMAGE_SIZE``, ``MIN_SCALE`` and ``MAX_SCALE``; other sizes and crops have no effect."""
        settings = cfg.INPUT
        if not 0 < settings.MIN_SCALE <= settings.MAX_SCALE:
            raise InputError(
                f"INPUT.MIN_SCALE is {settings.MIN_SCALE} and INPUT.MAX_SCALE {settings.MAX_SCALE}; expected positive "
                "numbers, the first not above the second."
            )
        augmentations = large_scale_jitter_recipe(
            image_size=settings.IMAGE_SIZE,
            min_scale=settings.MIN_SCALE,
            max_scale=settings.MAX_SCALE,
            colour_jitter=cls.colour_jitter(settings),
            flip=build_flip(settings.RANDOM_FLIP),
        )
        # A scaled image that is smaller than the square is padded to it.
        return {"augmentations": augmentations, "size_divisibility": settings.IMAGE_SIZE}


class SemanticLSJDatasetMapper(LargeScaleJitter, MaskFormerSemanticDatasetMapper):
    """``mask_former_semantic_lsj``: the targets of ``mask_former_semantic`` with large-scale jitter."""


class PanopticLSJDatasetMapper(LargeScaleJitter, MaskFormerPanopticDatasetMapper):
    """``coco_panoptic_lsj``: the targets of ``mask_former_panoptic`` with large-scale jitter."""


class InstanceLSJDatasetMapper(LargeScaleJitter, MaskFormerInstanceDatasetMapper):
    """``coco_instance_lsj``: the targets of ``mask_former_instance`` with large-scale jitter."""


MAPPERS: dict[str, type[TrainingMapper]] = {
    "mask_former_semantic": MaskFormerSemanticDatasetMapper,
    "mask_former_panoptic": MaskFormerPanopticDatasetMapper,
    "mask_former_instance": MaskFormerInstanceDatasetMapper,
    "detr_panoptic": DETRPanopticDatasetMapper,
    "mask_former_semantic_lsj": SemanticLSJDatasetMapper,
    "coco_panoptic_lsj": PanopticLSJDatasetMapper,
    "coco_instance_lsj": InstanceLSJDatasetMapper,
}


def build_mapper(cfg: CfgNode, is_train: bool) -> TrainingMapper | InferenceMapper:
    """Build the mapper that ``INPUT.DATASET_MAPPER_NAME`` names or, for evaluation, the one that reads images only.

    Raises:
        InputError: there is no mapper of that name.
    """
    if not is_train:
        return InferenceMapper(cfg)
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        raise InputError(f"INPUT.DATASET_MAPPER_NAME is {name!r}; expected one of {', '.join(sorted(MAPPERS))}.")
    return MAPPERS[name](cfg)
