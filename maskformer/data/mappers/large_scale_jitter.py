"""Large-scale jitter: the augmentation with which models are trained from scratch or for long."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from maskformer.structures import InputError

from ..transforms.augmentations import build_flip, large_scale_jitter_recipe
from .instance import MaskFormerInstanceDatasetMapper
from .panoptic import MaskFormerPanopticDatasetMapper
from .training import TrainingMapper


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
            flip=build_flip(settings.RANDOM_FLIP),
        )
        # A scaled image that is smaller than the square is padded to it.
        return {"augmentations": augmentations, "size_divisibility": settings.IMAGE_SIZE}


class PanopticLSJDatasetMapper(LargeScaleJitter, MaskFormerPanopticDatasetMapper):
    """``coco_panoptic_lsj``: the targets of ``mask_former_panoptic`` with large-scale jitter."""


class InstanceLSJDatasetMapper(LargeScaleJitter, MaskFormerInstanceDatasetMapper):
    """``coco_instance_lsj``: the targets of ``mask_former_instance`` with large-scale jitter."""
