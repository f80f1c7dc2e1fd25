"""The datasets of ours that a configuration can name; one file each but for those in label_maps and panoptic_maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from maskformer.config.own_datasets import read_own_datasets

from . import panoptic_maps
from .ade20k import register_ade20k
from .cityscapes import register_cityscapes
from .label_maps import ADE20K_FULL, COCO_STUFF_10K, MAPILLARY_VISTAS
from .own import register_own
from .shapes import register_shapes

__all__ = ["register_all", "register_missing"]

# Each with one of the names that it registers.
_REGISTER = {
    register_ade20k: "ade20k_panoptic_train",
    ADE20K_FULL.register: "ade20k_full_sem_seg_train",
    register_cityscapes: "cityscapes_fine_sem_seg_train",
    COCO_STUFF_10K.register: "coco_2017_train_stuff_10k_sem_seg",
    panoptic_maps.COCO.register: "coco_2017_val_panoptic_with_sem_seg",
    panoptic_maps.MAPILLARY_VISTAS.register: "mapillary_vistas_panoptic_train",
    MAPILLARY_VISTAS.register: "mapillary_vistas_sem_seg_train",
    register_shapes: "shapes_panoptic_train",
}


def register_all(root: str | Path) -> None:
    """Register every dataset of ours under the folder of all datasets, as often as wanted."""
    for register_dataset in _REGISTER:
        register_dataset(root)


def register_missing(own_datasets: Any) -> None:
    """Register what nobody has registered yet, for whoever builds a model without a command line.

    Datasets of ours come under ``$DETECTRON2_DATASETS``, as Detectron2's do; those that stand somewhere else already
    (``register_all(root)``, or a user's own under our names) stay. Detectron2's own loaders of Cityscapes are replaced.
    ``own_datasets`` is the value of ``DATASETS.OWN``.

    Raises:
        InputError: an own dataset has the name of another.
    """
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    for register_dataset, name in _REGISTER.items():
        if name not in DatasetCatalog or DatasetCatalog[name].__module__ == "detectron2.data.datasets.builtin":
            register_dataset(root)
    register_own(read_own_datasets(own_datasets))
