"""The datasets of ours that a configuration can name; one file each."""

from __future__ import annotations

from pathlib import Path

from maskformer.data.catalog.ade20k import register_ade20k
from maskformer.data.catalog.ade20k_full import register_ade20k_full
from maskformer.data.catalog.cityscapes import register_cityscapes
from maskformer.data.catalog.coco_stuff_10k import register_coco_stuff_10k
from maskformer.data.catalog.mapillary_vistas import register_mapillary_vistas
from maskformer.data.catalog.shapes import register_shapes

__all__ = ["register_all"]

_REGISTER = (
    register_ade20k,
    register_ade20k_full,
    register_cityscapes,
    register_coco_stuff_10k,
    register_mapillary_vistas,
    register_shapes,
)


def register_all(root: str | Path) -> None:
    """Register every dataset of ours under a root, as often as wanted.

    Args:
        root: the folder of all datasets, ``$DETECTRON2_DATASETS``.
    """
    for register_dataset in _REGISTER:
        register_dataset(root)
