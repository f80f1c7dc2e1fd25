"""ADE20K of the 2016 scene parsing challenge, 100 things and 50 stuff classes.

``ade20k_panoptic_{train,val}`` and ``ade20k_instance_{train,val}``; ``ade20k_sem_seg_{train,val}`` are Detectron2's
own. The category ids of both JSON files are 0..149, so that a panoptic model is measured on instances too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from maskformer.structures import InputError

from ..files.json_files import join_inside, read_panoptic_json
from .registration import (
    instance_metadata,
    load_instances,
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
            partial(load_panoptic, **paths),
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
            partial(load_instances, instance_json, image_root, name),
            **instance_metadata(categories),
            image_root=image_root,
            json_file=instance_json,
            evaluator_type="coco",
        )


def load_panoptic(
    *, image_root: str, sem_seg_root: str, panoptic_root: str, panoptic_json: str
) -> list[dict[str, Any]]:
    """Read the panoptic JSON, whose category ids are the contiguous ones.

    Returns:
        Detectron2's dataset dicts with ``sem_seg_file_name``, ``pan_seg_file_name`` and ``segments_info``.

    Raises:
        InputError: a segment has an unknown category.
    """
    content = read_panoptic_json(panoptic_json)
    images = {image["id"]: image for image in content["images"]}
    is_thing = {category["id"]: bool(category["isthing"]) for category in read_categories("ade20k_150.json")}
    records = []
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        segments = annotation["segments_info"]
        unknown = [segment["category_id"] for segment in segments if segment["category_id"] not in is_thing]
        if unknown:
            raise InputError(
                f"{panoptic_json} gives a segment of {annotation['file_name']} the category {unknown[0]}; expected "
                "0..149: make the JSON again (datasets/README.md)."
            )
        records.append(
            {
                "file_name": join_inside(image_root, image["file_name"], panoptic_json),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "sem_seg_file_name": join_inside(sem_seg_root, annotation["file_name"], panoptic_json),
                "pan_seg_file_name": join_inside(panoptic_root, annotation["file_name"], panoptic_json),
                "segments_info": [{**segment, "isthing": is_thing[segment["category_id"]]} for segment in segments],
            }
        )
    return records
