"""Mapillary Vistas 1.2, the 65 evaluated of its 66 classes: ``mapillary_vistas_sem_seg_{train,val}``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data.datasets import load_sem_seg

from .registration import read_categories, register, semantic_metadata

_FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}


def register_mapillary_vistas(root: str | Path) -> None:
    """Register the dataset as found under ``root/mapillary_vistas``; files are looked for when it is loaded."""
    metadata = semantic_metadata(read_categories("mapillary_vistas_65.json"))
    for split, split_folder in _FOLDER_OF_SPLIT.items():
        folder = Path(root) / "mapillary_vistas" / split_folder
        images, labels = str(folder / "images"), str(folder / "labels")
        register(
            f"mapillary_vistas_sem_seg_{split}",
            partial(load_sem_seg, labels, images, gt_ext="png", image_ext="jpg"),
            image_root=images,
            sem_seg_root=labels,
            evaluator_type="sem_seg",
            ignore_label=65,  # the 66th class, "Unlabeled"
            **metadata,
        )
