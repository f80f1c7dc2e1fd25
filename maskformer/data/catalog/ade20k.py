"""ADE20K of the 2016 scene parsing challenge: ``ade20k_panoptic_{train,val}``, 100 things and 50 stuff classes.

``ade20k_sem_seg_{train,val}`` are Detectron2's own.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from maskformer.data.catalog.registration import read_categories, register
from maskformer.structures import InputError

_FOLDER_OF_SPLIT = {"train": "training", "val": "validation"}


def register_ade20k(root: str | Path) -> None:
    """Register the dataset as found under ``root/ADEChallengeData2016``; files are looked for when it is loaded."""
    folder = Path(root) / "ADEChallengeData2016"
    categories = read_categories("ade20k_150.json")
    for split, split_folder in _FOLDER_OF_SPLIT.items():
        paths = {
            "image_root": str(folder / "images" / split_folder),
            "sem_seg_root": str(folder / "annotations_detectron2" / split_folder),
            "panoptic_root": str(folder / f"ade20k_panoptic_{split}"),
            "panoptic_json": str(folder / f"ade20k_panoptic_{split}.json"),
        }
        register(
            f"ade20k_panoptic_{split}",
            partial(load_panoptic, **paths),
            **paths,
            **panoptic_metadata(categories),
            evaluator_type="ade20k_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
        )


def panoptic_metadata(categories: list[dict[str, Any]]) -> dict[str, Any]:
    """Make names, colours and id tables for evaluators and the visualizer.

    Both class lists hold all categories, and the stuff table all ids: Detectron2 looks things and stuff up in separate
    lists by contiguous id, and its semantic evaluator takes the stuff tables alone.

    Args:
        categories: ``name``, ``id``, ``isthing`` and ``color`` in the order of contiguous ids.
    """
    names, colours = [c["name"] for c in categories], [c["color"] for c in categories]
    return {
        "thing_classes": names,
        "thing_colors": colours,
        "stuff_classes": names,
        "stuff_colors": colours,
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories) if c["isthing"]},
        "stuff_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories)},
    }


def load_panoptic(
    *, image_root: str, sem_seg_root: str, panoptic_root: str, panoptic_json: str
) -> list[dict[str, Any]]:
    """Read the panoptic JSON, whose category ids are the contiguous ones.

    Returns:
        Detectron2's dataset dicts with ``sem_seg_file_name``, ``pan_seg_file_name`` and ``segments_info``.

    Raises:
        InputError: a segment has an unknown category.
    """
    content = json.loads(Path(panoptic_json).read_text(encoding="utf-8"))
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
                "file_name": str(Path(image_root, image["file_name"])),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "sem_seg_file_name": str(Path(sem_seg_root, annotation["file_name"])),
                "pan_seg_file_name": str(Path(panoptic_root, annotation["file_name"])),
                "segments_info": [{**segment, "isthing": is_thing[segment["category_id"]]} for segment in segments],
            }
        )
    return records
