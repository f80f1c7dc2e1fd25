"""A user's own datasets, which ``DATASETS.OWN`` describes; the form of its block: maskformer/config/own_datasets.py."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from maskformer.structures import InputError, OwnDataset

from ..files.json_files import join_inside, read_instance_json, read_panoptic_json
from . import registration
from .registration import index_colour, instance_metadata, panoptic_metadata, register, semantic_metadata

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_LABEL_SUFFIXES = {".png", ".bmp", ".tif", ".tiff"}


def register_own(datasets: Iterable[OwnDataset]) -> None:
    """Register what ``DATASETS.OWN`` describes, as often as wanted; files are looked for when one is loaded.

    Raises:
        InputError: a name is another dataset's.
    """
    for dataset in datasets:
        if dataset.name in DatasetCatalog and MetadataCatalog.get(dataset.name).get("own_key") is None:
            raise InputError(
                f"{dataset.key} would be named {dataset.name}, which is another dataset's name: choose another."
            )
        load = next(load for kind, load in _LOADERS.items() if kind in dataset.paths)
        register(dataset.name, partial(load, dataset), own_key=dataset.key, **_metadata(dataset))


def _categories(dataset: OwnDataset) -> list[Record]:
    colors = dataset.colors or [index_colour(index) for index in range(len(dataset.classes))]
    return [
        {"name": name, "id": value, "isthing": name in dataset.things, "color": list(color)}
        for name, value, color in zip(dataset.classes, dataset.values.of_classes, colors, strict=True)
    ]


def _metadata(dataset: OwnDataset) -> Record:
    categories, paths = _categories(dataset), dataset.paths
    if "labels" in paths:
        return {
            **semantic_metadata(categories),
            **{"image_root": paths["images"], "sem_seg_root": paths["labels"], "evaluator_type": "sem_seg"},
            **{"ignore_label": dataset.ignore_label, "label_values": dataset.values},
        }
    if "instances" in paths:
        return {
            **instance_metadata(categories),
            **{"image_root": paths["images"], "json_file": paths["instances"], "evaluator_type": "coco"},
        }
    return {
        **panoptic_metadata(categories),
        **{"image_root": paths["images"], "panoptic_root": paths["panoptic_masks"], "panoptic_json": paths["panoptic"]},
        **{"ignore_label": dataset.ignore_label, "label_divisor": 1000, "evaluator_type": "coco_panoptic_seg"},
    }


def load_semantic(dataset: OwnDataset) -> list[Record]:
    """Pair images and label maps of the same name, in subfolders too; entries have ``label_values``.

    Raises:
        InputError: a folder is missing or empty, or an image has no label.
    """
    images = _find_files(dataset, "images", _IMAGE_SUFFIXES)
    labels = _find_files(dataset, "labels", _LABEL_SUFFIXES)
    missing = sorted(images.keys() - labels.keys())
    if missing:
        raise InputError(
            f"{len(missing)} of {len(images)} images of {dataset.key} have no label, first {images[missing[0]]}; "
            f"expected {missing[0]}.png in {dataset.paths['labels']}: add it or take the image away."
        )
    unused = sorted(labels.keys() - images.keys())
    if unused:
        logger.warning("%d labels of %s have no image, first %s.", len(unused), dataset.key, labels[unused[0]])
    return [
        {"file_name": str(image), "sem_seg_file_name": str(labels[name]), "label_values": dataset.values}
        for name, image in sorted(images.items())
    ]


def load_instances(dataset: OwnDataset) -> list[Record]:
    """Read a COCO instance JSON to Detectron2's dataset dicts, with contiguous categories.

    Raises:
        InputError: a file or folder is missing, or the JSON's categories are not the dataset's.
    """
    content = _read_json(dataset, "instances", read_instance_json)
    used = {annotation["category_id"] for annotation in content["annotations"]}
    class_of_id = _match_categories(dataset, "instances", content["categories"], used)
    records = load_coco_json(dataset.paths["instances"], dataset.paths["images"])
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = class_of_id[annotation["category_id"]]
    return records


def load_panoptic(dataset: OwnDataset) -> list[Record]:
    """Read a COCO panoptic JSON to Detectron2's dataset dicts, with contiguous categories.

    Raises:
        InputError: a file or folder is missing, an image has no annotation, or the JSON's categories are not the
            dataset's.
    """
    content = _read_json(dataset, "panoptic", read_panoptic_json)
    _existing_folder(dataset, "panoptic_masks")
    segments = [segment for annotation in content["annotations"] for segment in annotation["segments_info"]]
    _match_categories(dataset, "panoptic", content["categories"], {segment["category_id"] for segment in segments})
    annotated = {annotation["image_id"] for annotation in content["annotations"]}
    for image in content["images"]:
        if image["id"] not in annotated:
            raise InputError(
                f"Image {Path(dataset.paths['images'], image['file_name'])} has no annotation in "
                f"{dataset.paths['panoptic']} ({dataset.key}.panoptic): add it or take the image away."
            )
    return registration.load_panoptic(
        content,
        image_root=dataset.paths["images"],
        panoptic_root=dataset.paths["panoptic_masks"],
        panoptic_json=dataset.paths["panoptic"],
        categories=_categories(dataset),
    )


_LOADERS: dict[str, Callable[[OwnDataset], list[Record]]] = {
    "labels": load_semantic,
    "instances": load_instances,
    "panoptic": load_panoptic,
}


def _match_categories(
    dataset: OwnDataset, path_key: str, categories: list[Record], used: Iterable[int]
) -> dict[int, int]:
    """Map category ids to classes, after making sure that the JSON means the same by them."""
    class_of_id = {value: index for index, value in enumerate(dataset.values.of_classes)}
    json_file, block = dataset.paths[path_key], dataset.key.rpartition(".")[0]
    in_json = {category["id"]: category for category in categories}
    for number in sorted({*used, *(in_json.keys() & class_of_id.keys())}):
        theirs = in_json.get(number, {}).get("name")
        ours = dataset.classes[class_of_id[number]] if number in class_of_id else None
        if theirs is None or ours != theirs:
            ids = {category["name"]: category["id"] for category in categories if "name" in category}
            fitting = [ids.get(name) for name in dataset.classes]
            remedy = f"write ids: {fitting} there" if None not in fitting else f"its categories are {', '.join(ids)}"
            raise InputError(
                f"Category {number} is {theirs!r} in {json_file} but {ours!r} in {block} (classes, offset, ids); "
                f"expected the same: {remedy}."
            )
        is_thing = in_json[number].get("isthing")
        if path_key == "panoptic" and is_thing is not None and bool(is_thing) != (ours in dataset.things):
            raise InputError(
                f"Category {theirs!r} has isthing {is_thing} in {json_file} but is {'' if not is_thing else 'not '}in "
                f"{block}.things; expected the same."
            )
    return class_of_id


def _find_files(dataset: OwnDataset, path_key: str, suffixes: set[str]) -> dict[str, Path]:
    """The files of a folder and its subfolders, by their names from there without the suffix."""
    folder = _existing_folder(dataset, path_key)
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise InputError(
                f"{dataset.key}.{path_key} has both {found[name]} and {path}; expected one file of a name, and images "
                "and labels in folders apart."
            )
        found[name] = path
    if not found:
        raise InputError(
            f"{dataset.key}.{path_key} is {folder}, which holds no file of the types {', '.join(sorted(suffixes))}."
        )
    return found


def _existing_folder(dataset: OwnDataset, path_key: str) -> Path:
    folder = Path(dataset.paths[path_key])
    if not os.path.isdir(folder):
        raise InputError(f"{dataset.key}.{path_key} is {folder}, which is no folder; correct the path.")
    return folder


def _read_json(dataset: OwnDataset, path_key: str, read: Callable[[str, str], Record]) -> Record:
    _existing_folder(dataset, "images")
    path = Path(dataset.paths[path_key])
    if not os.path.isfile(path):
        raise InputError(f"{dataset.key}.{path_key} is {path}, which is no file; correct the path.")
    content = read(str(path), f"{dataset.key}.{path_key}")
    if "categories" not in content:
        raise InputError(f"{path} ({dataset.key}.{path_key}) has no categories; expected COCO's format.")
    for image in content["images"]:
        file_name = join_inside(dataset.paths["images"], image["file_name"], path)
        if not os.path.isfile(file_name):  # unlike Path's, False for a name that no file can have
            raise InputError(f"Image {file_name} does not exist but {path} names it; correct {dataset.key}.images.")
    return content
