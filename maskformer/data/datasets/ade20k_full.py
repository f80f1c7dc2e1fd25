"""ADE20K as released in 2021 with the 847 classes of the full protocol: ``ade20k_full_sem_seg_{train,val}``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data.datasets import load_sem_seg

from .registration import read_categories, register, semantic_metadata

_FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}


def register_ade20k_full(root: str | Path) -> None:
    """Register the dataset as found under ``root/ADE20K_2021_17_01``; files are looked for when it is loaded."""
    folder = Path(root) / "ADE20K_2021_17_01"
    metadata = semantic_metadata(read_categories("ade20k_full_847.json"))
    for split, split_folder in _FOLDER_OF_SPLIT.items():
        images = str(folder / "images_detectron2" / split_folder)
        labels = str(folder / "annotations_detectron2" / split_folder)
        register(
            f"ade20k_full_sem_seg_{split}",
            partial(load_sem_seg, labels, images, gt_ext="tif", image_ext="jpg"),
            image_root=images,
            sem_seg_root=labels,
            evaluator_type="sem_seg",
            ignore_label=65535,  # 255 is a class here: labels are 16-bit
            **metadata,
        )
