"""The mappers by name."""

from __future__ import annotations

from detectron2.config import CfgNode

from maskformer.structures import InputError

from .inference import InferenceMapper
from .instance import MaskFormerInstanceDatasetMapper
from .large_scale_jitter import InstanceLSJDatasetMapper, PanopticLSJDatasetMapper
from .panoptic import DETRPanopticDatasetMapper, MaskFormerPanopticDatasetMapper
from .semantic import MaskFormerSemanticDatasetMapper
from .training import TrainingMapper

MAPPERS: dict[str, type[TrainingMapper]] = {
    "mask_former_semantic": MaskFormerSemanticDatasetMapper,
    "mask_former_panoptic": MaskFormerPanopticDatasetMapper,
    "mask_former_instance": MaskFormerInstanceDatasetMapper,
    "detr_panoptic": DETRPanopticDatasetMapper,
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
