"""From datasets on disk to batches: catalog, mappers, augmentations, targets and loaders."""

from maskformer.data.checks.verification import verify_dataset
from maskformer.data.loading.loaders import build_test_loader, build_train_loader
from maskformer.data.mappers import (
    MAPPERS,
    DETRPanopticDatasetMapper,
    InferenceMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
    build_mapper,
)
from maskformer.data.transforms.resampling import prepare_resizing

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
    "prepare_resizing",
    "verify_dataset",
]
