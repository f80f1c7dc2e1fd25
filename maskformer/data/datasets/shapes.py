"""The built-in dataset, which maskformer.demo draws: ``shapes_{panoptic,sem_seg,instance}_{train,val}``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from .registration import instance_metadata, load_panoptic, register, semantic_metadata

Record = dict[str, Any]
FOLDER = "shapes"


@dataclass(frozen=True)
class Category:
    """One category: its name, the RGB that labels are drawn in, and whether its segments are counted one by one."""

    name: str
    color: tuple[int, int, int]
    is_thing: bool


CATEGORIES = (
    Category("ball", (226, 68, 62), True),
    Category("box", (245, 148, 40), True),
    Category("triangle", (142, 84, 212), True),
    Category("star", (255, 236, 96), True),
    Category("ring", (240, 110, 200), True),
    Category("sky", (139, 190, 235), False),
    Category("water", (46, 117, 182), False),
    Category("grass", (96, 169, 84), False),
    Category("sand", (219, 197, 147), False),
)
THINGS = tuple(category for category in CATEGORIES if category.is_thing)
INDEX_OF = {category.name: index for index, category in enumerate(CATEGORIES)}


def dataset_id(index: int) -> int:
    """The category id in the JSON files for a contiguous index: they count from 1."""
    return index + 1


def register_shapes(root: str | Path) -> None:
    """Register the built-in dataset as found under ``root/shapes``; its files are looked for when one is loaded."""
    folder = Path(root) / FOLDER
    categories = [
        {"id": dataset_id(index), "name": each.name, "color": list(each.color), "isthing": each.is_thing}
        for index, each in enumerate(CATEGORIES)
    ]
    for split in ("train", "val"):
        images, json_file = str(folder / split), str(folder / "annotations" / f"instances_{split}.json")
        paths = {
            "image_root": images,
            "sem_seg_root": str(folder / f"sem_seg_{split}"),
            "panoptic_root": str(folder / f"panoptic_{split}"),
            "panoptic_json": str(folder / "annotations" / f"panoptic_{split}.json"),
        }
        metadata = {
            # The stuff tables hold all categories, as Detectron2's of COCO do.
            **{**semantic_metadata(categories), **instance_metadata(categories), **paths},
            **{"json_file": json_file, "ignore_label": 255, "label_divisor": 1000},
        }
        panoptic = partial(load_panoptic, **paths, categories=categories)
        register(f"shapes_panoptic_{split}", panoptic, **metadata, evaluator_type="coco_panoptic_seg")
        register(f"shapes_sem_seg_{split}", partial(_without_segments, panoptic), **metadata, evaluator_type="sem_seg")
        name = f"shapes_instance_{split}"
        register(name, partial(load_coco_json, json_file, images, name), **metadata, evaluator_type="coco")


def _without_segments(load: Callable[[], list[Record]]) -> list[Record]:
    panoptic_keys = ("pan_seg_file_name", "segments_info")
    return [{key: value for key, value in record.items() if key not in panoptic_keys} for record in load()]
