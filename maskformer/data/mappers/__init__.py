"""From a dataset's entry for one image to what the model takes."""

from .base import InferenceMapper
from .instance import MaskFormerInstanceDatasetMapper
from .panoptic import DETRPanopticDatasetMapper, MaskFormerPanopticDatasetMapper
from .semantic import MaskFormerSemanticDatasetMapper
from .table import MAPPERS, build_mapper

__all__ = [
    "MAPPERS",
    "DETRPanopticDatasetMapper",
    "InferenceMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "build_mapper",
]
