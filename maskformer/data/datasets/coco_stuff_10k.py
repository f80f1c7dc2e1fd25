"""COCO-Stuff 10k, version 1.0, with 80 thing and 91 stuff classes: ``coco_2017_{train,test}_stuff_10k_sem_seg``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data.datasets import load_sem_seg

from .registration import read_categories, register, semantic_metadata


def register_coco_stuff_10k(root: str | Path) -> None:
    """Register the dataset as found under ``root/coco/coco_stuff_10k``; files are looked for when it is loaded."""
    folder = Path(root) / "coco" / "coco_stuff_10k"
    metadata = semantic_metadata(read_categories("coco_stuff_171.json"))
    for split in ("train", "test"):
        images = str(folder / "images_detectron2" / split)
        labels = str(folder / "annotations_detectron2" / split)
        register(
            f"coco_2017_{split}_stuff_10k_sem_seg",
            partial(load_sem_seg, labels, images, gt_ext="png", image_ext="jpg"),
            image_root=images,
            sem_seg_root=labels,
            evaluator_type="sem_seg",
            ignore_label=255,
            **metadata,
        )
