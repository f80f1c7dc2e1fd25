"""ADE20K of the 2016 scene parsing challenge, 100 things and 50 stuff classes.

``ade20k_panoptic_{train,val}`` and ``ade20k_instance_{train,val}``; ``ade20k_sem_seg_{train,val}`` are Detectron2's
own. The category ids of both JSON files are 0..149, so that a panoptic model is measured on instances too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detectron2.data.datasets import load_coco_json

from .registration import (
    instance_metadata,
    load_panoptic,
    panoptic_metadata,
    read_categories,
    register,
)

FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}


def register_ade20k(root: str | Path) -> None:
    """Register the datasets as found under ``root/ADEChallengeData2016``; files are looked for when one is loaded."""
    folder = Path(root) / "ADEChallengeData2016"
    categories = read_categories("ade20k_150.json")
    for split, split_folder in FOLDER_OF_SPLIT.items():
        image_root = str(folder / "images" / split_folder)
        instance_json = str(folder / f"ade20k_instance_{split}.json")
        paths = {
            "image_root": image_root,
            "sem_seg_root": str(folder / "annotations_detectron2" / split_folder),
            "panoptic_root": str(folder / f"ade20k_panoptic_{split}"),
            "panoptic_json": str(folder / f"ade20k_panoptic_{split}.json"),
        }
        register(
            f"ade20k_panoptic_{split}",
            partial(load_panoptic, **paths, categories=categories),
            **paths,
            **panoptic_metadata(categories),
            json_file=instance_json,
            evaluator_type="ade20k_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
        )
        name = f"ade20k_instance_{split}"
        register(
            name,
            partial(load_coco_json, instance_json, image_root, name),
            **instance_metadata(categories),
            image_root=image_root,
            json_file=instance_json,
            evaluator_type="coco",
        )
