"""From a dataset's entry for one image to what the model takes."""

from maskformer.data.mappers.inference import InferenceMapper
from maskformer.data.mappers.instance import MaskFormerInstanceDatasetMapper
from maskformer.data.mappers.panoptic import DETRPanopticDatasetMapper, MaskFormerPanopticDatasetMapper
from maskformer.data.mappers.semantic import MaskFormerSemanticDatasetMapper
from maskformer.data.mappers.table import MAPPERS, build_mapper

__all__ = [
    "MAPPERS",
    "DETRPanopticDatasetMapper",
    "InferenceMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "build_mapper",
]
