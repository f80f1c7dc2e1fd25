"""From datasets on disk to batches: catalog, mappers, augmentations, targets and loaders."""

from .checks.verification import verify_dataset
from .loading.loaders import build_test_loader, build_train_loader
from .mappers.base import InferenceMapper
from .mappers.instance import MaskFormerInstanceDatasetMapper
from .mappers.pixel_labels import (
    DETRPanopticDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from .mappers.table import MAPPERS, build_mapper

__all__ = [
    "MAPPERS",
    "DETRPanopticDatasetMapper",
    "InferenceMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "verify_dataset",
]
