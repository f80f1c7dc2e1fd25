"""ADE20K of the 2016 scene parsing challenge: the instances of its 100 things, ``ade20k_instance_{train,val}``.

``ade20k_panoptic_{train,val}`` are in panoptic_maps.py; ``ade20k_sem_seg_{train,val}`` are Detectron2's own. The
category ids of both JSON files are 0..149, so that a panoptic model is measured on instances too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from maskformer.structures import InputError

from .panoptic_maps import ADE20K
from .registration import Category, instance_metadata, read_categories, register

# Where the instance set does not have the first of the names that the 150 classes have, by that name.
_NAMES = {
    "window": "windowpane",
    "tub": "bathtub",
    "rail": "railing",
    "street lamp": "streetlight",
    "tv": "television receiver",
    "plane": "airplane",
    "clothes": "apparel",
    "trash can": "ashcan",
}


def register_ade20k(root: str | Path) -> None:
    """Register the datasets as found under ``root/ADEChallengeData2016``; files are looked for when one is loaded."""
    ADE20K.register(root)
    folder = Path(root) / "ADEChallengeData2016"
    metadata = instance_metadata(instance_categories())
    for split, split_folder in ADE20K.folders.items():
        paths = {
            "image_root": str(folder / "images" / split_folder),
            "json_file": str(folder / f"ade20k_instance_{split}.json"),
        }
        load = partial(_load_instances, **paths, class_of_id=metadata["thing_dataset_id_to_contiguous_id"])
        register(f"ade20k_instance_{split}", load, **paths, **metadata, evaluator_type="coco")


def instance_categories() -> list[Category]:
    """The 100 things under the names that the released instance models have for them."""
    things = [category for category in read_categories("ade20k_150.json") if category["isthing"]]
    names = [thing["name"].partition(",")[0].strip() for thing in things]
    return [{**thing, "name": _NAMES.get(name, name)} for thing, name in zip(things, names, strict=True)]


def _load_instances(*, json_file: str, image_root: str, class_of_id: dict[int, int]) -> list[dict[str, Any]]:
    """Read the JSON, whatever names it gives the categories: programs that make it differ."""
    records = load_coco_json(json_file, image_root)
    for annotation in (annotation for record in records for annotation in record["annotations"]):
        if annotation["category_id"] not in class_of_id:
            raise InputError(
                f"{json_file} has an instance of the category {annotation['category_id']}; expected the ids of the "
                f"{len(class_of_id)} things, {min(class_of_id)}..{max(class_of_id)}: make it again "
                "(datasets/README.md)."
            )
        annotation["category_id"] = class_of_id[annotation["category_id"]]
    return records
