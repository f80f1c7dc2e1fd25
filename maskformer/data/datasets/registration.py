"""What registering a dataset needs, whichever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from maskformer.structures import InputError

from ..files.json_files import join_inside, read_panoptic_json

Category = dict[str, Any]  # name, id, isthing and color; lists of them are in the order of contiguous ids


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


def load_panoptic(
    content: dict[str, Any] | None = None,
    /,
    *,
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    categories: list[Category],
    sem_seg_root: str | None = None,
) -> list[dict[str, Any]]:
    """Load a dataset of COCO's panoptic format, which may have label maps of the same names too.

    Args:
        content: of the JSON, where it has been read before.
        image_root: the folder of its images.
        panoptic_root: of the panoptic PNGs.
        panoptic_json: the file that names them all.
        categories: ``id`` and ``isthing`` in the order of contiguous ids.
        sem_seg_root: the folder of the label maps; None: there are none.

    Returns:
        Detectron2's dataset dicts, in the order of the JSON's images: ``file_name``, ``image_id``, ``height``,
        ``width``, ``sem_seg_file_name``, ``pan_seg_file_name`` and ``segments_info`` with contiguous ``category_id``.

    Raises:
        InputError: see ``read_panoptic_json``; a segment has an unknown category, or a name leads out of its folder.
    """
    content = read_panoptic_json(panoptic_json) if content is None else content
    annotations = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    records = []
    for image in content["images"]:
        annotation = annotations.get(image["id"])
        if annotation is None:
            continue
        labels = {"pan_seg_file_name": panoptic_root, **({"sem_seg_file_name": sem_seg_root} if sem_seg_root else {})}
        records.append(
            {
                "file_name": join_inside(image_root, image["file_name"], panoptic_json),
                **{key: image[key] for key in ("height", "width")},
                "image_id": image["id"],
                **{key: join_inside(root, annotation["file_name"], panoptic_json) for key, root in labels.items()},
                "segments_info": contiguous_segments(annotation, categories, panoptic_json),
            }
        )
    return records


def contiguous_segments(
    annotation: dict[str, Any], categories: list[Category], panoptic_json: str, hint: str = ""
) -> list[dict[str, Any]]:
    """The ``segments_info`` of an annotation with contiguous categories, and ``isthing``.

    Raises:
        InputError: a category is none of ``categories``; ``hint`` says how to make the JSON.
    """
    index_of = {category["id"]: index for index, category in enumerate(categories)}
    segments = []
    for segment in annotation["segments_info"]:
        if segment["category_id"] not in index_of:
            raise InputError(
                f"{panoptic_json} gives a segment of {annotation['file_name']} the category {segment['category_id']}; "
                f"expected the id of a class, {min(index_of)}..{max(index_of)}: make the JSON again{hint} "
                "(datasets/README.md)."
            )
        index = index_of[segment["category_id"]]
        segments.append({**segment, "category_id": index, "isthing": bool(categories[index]["isthing"])})
    return segments


def read_categories(file_name: str) -> list[Category]:
    """Read a table of ``maskformer/data/categories``: the categories in the order of their contiguous ids."""
    return json.loads((resources.files(__package__) / "categories" / file_name).read_text(encoding="utf-8"))


def semantic_metadata(categories: list[Category]) -> dict[str, Any]:
    """Make names, colours and the id table of a dataset of label maps; categories need no ``color``."""
    return {
        "stuff_classes": [category["name"] for category in categories],
        "stuff_colors": [category.get("color") or index_colour(i) for i, category in enumerate(categories)],
        "stuff_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
    }


def instance_metadata(categories: list[Category]) -> dict[str, Any]:
    """Make names, colours and the id table of a dataset of instances: things alone, numbered among themselves."""
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
