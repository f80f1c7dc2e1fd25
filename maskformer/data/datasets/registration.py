"""What registering a dataset needs, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..files.json_files import join_inside, read_instance_json

Category = dict[str, Any]


def register(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a dataset, in place of an earlier registration of the same name.

    Args:
        name: as in ``DATASETS.TRAIN``.
        load: gives Detectron2's dataset dicts.
        metadata: what evaluators and the visualizer ask for.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def load_instances(json_file: str, image_root: str, name: str | None = None) -> list[dict[str, Any]]:
    """Load instances with Detectron2's loader, which trusts its JSON, from a JSON that has been checked.

    Args:
        json_file: in COCO's format.
        image_root: the folder of its images.
        name: of the dataset, whose metadata Detectron2 then completes; None: category ids stay as they are.

    Raises:
        InputError: see ``read_instance_json``; or an image's name leads out of the folder.
    """
    for image in read_instance_json(json_file)["images"]:
        join_inside(image_root, image["file_name"], json_file)
    return load_coco_json(json_file, image_root, name)


def read_categories(file_name: str) -> list[Category]:
    """Read a table of ``maskformer/data/categories``: the categories in the order of their contiguous ids."""
    return json.loads((resources.files(__package__) / "categories" / file_name).read_text(encoding="utf-8"))


def semantic_metadata(categories: list[Category]) -> dict[str, Any]:
    """Make names, colours and the id table of a dataset of label maps.

    Args:
        categories: ``name``, ``id`` and, where the dataset has one, ``color``, in the order of contiguous ids.
    """
    return {
        "stuff_classes": [category["name"] for category in categories],
        "stuff_colors": [category.get("color") or index_colour(i) for i, category in enumerate(categories)],
        "stuff_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
    }


def instance_metadata(categories: list[Category]) -> dict[str, Any]:
    """Make names, colours and the id table of a dataset of instances: things alone, numbered among themselves.

    Args:
        categories: ``name``, ``id``, ``isthing`` and ``color`` in the order of contiguous ids.
    """
    things = [category for category in categories if category["isthing"]]
    return {
        "thing_classes": [thing["name"] for thing in things],
        "thing_colors": [thing["color"] for thing in things],
        "thing_dataset_id_to_contiguous_id": {thing["id"]: i for i, thing in enumerate(things)},
    }


def panoptic_metadata(categories: list[Category]) -> dict[str, Any]:
    """Make names, colours and id tables for evaluators and the visualizer.

    Both class lists hold all categories, and the stuff table all ids: Detectron2 looks things and stuff up in separate
    lists by contiguous id, and its semantic evaluator takes the stuff tables alone.

    Args:
        categories: ``name``, ``id``, ``isthing`` and ``color`` in the order of contiguous ids.
    """
    everything = semantic_metadata(categories)
    return {
        **everything,
        "thing_classes": everything["stuff_classes"],
        "thing_colors": everything["stuff_colors"],
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(categories) if c["isthing"]},
    }


def index_colour(index: int) -> list[int]:
    """Make a colour for a class that has none, different for each index below 2^24 - 1.

    The bits of index + 1 go round red, green and blue from their highest bits down, as in PASCAL VOC's palette.
    """
    colour = [0, 0, 0]
    for position in range(24):
        bit = (index + 1) >> position & 1
        colour[position % 3] |= bit << (7 - position // 3)
    return colour
