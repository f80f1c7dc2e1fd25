"""A user's own datasets, which ``DATASETS.OWN`` describes; the form of its block: maskformer/config/own_datasets.py."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pycocotools.mask as rle
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from maskformer.structures import Bands, InputError, OwnDataset

from ..files import archives
from ..files.json_files import join_inside, read_instance_json, read_panoptic_json
from ..files.masks import ObjectMasks
from . import registration
from .own_files import Files, choose, find_files, label_names, list_names, one_of_each, root_of
from .own_hints import explain_missing_folder, explain_missing_image, explain_missing_labels
from .registration import index_colour, instance_metadata, panoptic_metadata, register, semantic_metadata

logger = logging.getLogger(__name__)

Record = dict[str, Any]


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
        register(dataset.name, partial(load, dataset), own_key=dataset.key, bands=dataset.bands, **_metadata(dataset))


def bands_of(names: Iterable[str]) -> Bands | None:
    """How the pictures of the first own dataset among these, which are registered, are read; None: as plain ones."""
    own = [name for name in names if name in DatasetCatalog and MetadataCatalog.get(name).get("own_key")]
    return MetadataCatalog.get(own[0]).get("bands") if own else None


def _categories(dataset: OwnDataset) -> list[Record]:
    colors = dataset.colors or [index_colour(index) for index in range(len(dataset.classes))]
    return [
        {"name": name, "id": value, "isthing": name in dataset.things, "color": list(color)}
        for name, value, color in zip(dataset.classes, dataset.values.of_classes, colors, strict=True)
    ]


def _metadata(dataset: OwnDataset) -> Record:
    categories, paths = _categories(dataset), dataset.paths
    root = root_of(paths["images"])
    if "labels" in paths:
        return {
            **semantic_metadata(categories),
            **{"image_root": root, "sem_seg_root": root_of(paths["labels"]), "evaluator_type": "sem_seg"},
            **{"ignore_label": dataset.ignore_label, "label_values": dataset.values},
        }
    if "objects" in paths:
        return {**instance_metadata(categories), "image_root": root, "evaluator_type": "coco"}
    if "instances" in paths:
        return {
            **instance_metadata(categories),
            **{"image_root": root, "json_file": paths["instances"], "evaluator_type": "coco"},
        }
    return {
        **panoptic_metadata(categories),
        **{"image_root": root, "panoptic_root": paths["panoptic_masks"], "panoptic_json": paths["panoptic"]},
        **{"ignore_label": dataset.ignore_label, "label_divisor": 1000, "evaluator_type": "coco_panoptic_seg"},
    }


def load_semantic(dataset: OwnDataset) -> list[Record]:
    """Pair images and label maps by name or by a list; entries have ``label_values``.

    Raises:
        InputError: a folder is missing or empty, or an image has no label.
    """
    images = one_of_each(dataset, "images", find_files(dataset, "images", "labels"))
    chosen = choose(dataset, images) if "list" in dataset.paths else [(key, "") for key in images]
    are_named = any(label for _, label in chosen)
    names = label_names(dataset) if are_named else None
    is_all_named = are_named and all(label for _, label in chosen)
    labels = {} if is_all_named else one_of_each(dataset, "labels", find_files(dataset, "labels", "images"))
    label_of = {key: names.find(label) if label and names else labels.get(key) for key, label in chosen}
    lost = next((label for key, label in chosen if label and label_of[key] in (None, images[key])), None)
    if lost is not None:
        raise InputError(
            f"{dataset.paths['list']} ({dataset.key}.list) names the label {lost!r}, which is not in "
            f"{dataset.paths['labels']}; expected that folder, or one above it: correct labels or list."
        )
    _check_labelled(
        dataset, "labels", {key: images[key] for key, label in label_of.items() if label is None}, len(chosen)
    )
    if "list" not in dataset.paths:
        _warn_of_unused(dataset, "labels", [label for key, label in labels.items() if key not in images])
    return [
        _entry(dataset, images[key], sem_seg_file_name=label, label_values=dataset.values)
        for key, label in label_of.items()
    ]


def load_objects(dataset: OwnDataset) -> list[Record]:
    """Find the masks of each image's objects: a file of its name, or several in a folder of its name.

    Raises:
        InputError: a folder is missing or empty, or an image has no file.
    """
    images = one_of_each(dataset, "images", find_files(dataset, "images", "objects"))
    chosen = [key for key, _ in choose(dataset, images)] if "list" in dataset.paths else list(images)
    found = find_files(dataset, "objects", "images")
    masks, unused = _group_masks(images, found, has_scenes="*" in dataset.paths["objects"])
    _check_labelled(dataset, "objects", {key: images[key] for key in chosen if key not in masks}, len(chosen))
    if "list" not in dataset.paths:
        _warn_of_unused(dataset, "objects", unused)
    return [
        _entry(
            *(dataset, images[key]),
            image_id=index,
            annotations=ObjectMasks(
                masks[key],
                are_single=len(masks[key]) > 1 or key not in found,  # else it has the image's name, and numbers objects
                ignored=dataset.values.ignored,
            ),
        )
        for index, key in enumerate(chosen)
    ]


def _group_masks(images: Collection[str], found: Files, *, has_scenes: bool) -> tuple[Files, list[str]]:
    """The mask files of each image, and the rest: they have its name, are in a folder of it, or belong to its scene."""
    in_folder = Counter(key.rpartition("/")[0] for key in images)
    alone = {folder: key for key in images if in_folder[folder := key.rpartition("/")[0]] == 1 and folder}
    masks: Files = defaultdict(list)
    unused = []
    for key, files in found.items():
        folder = key.rpartition("/")[0]
        owner = next(
            (each for each in (key, folder, alone.get(folder) if has_scenes else None) if each in images), None
        )
        if owner is None:
            unused += files
        else:
            masks[owner] += files
    return masks, unused


def _entry(dataset: OwnDataset, image: str, **labels: Any) -> Record:
    bands = {} if dataset.bands is None else {"bands": dataset.bands}
    return {"file_name": image, **labels, **bands}


def _check_labelled(dataset: OwnDataset, path_key: str, missing: dict[str, str], count: int) -> None:
    if not missing:
        return
    folder, images = dataset.paths[path_key], dataset.paths["images"]
    in_images, in_labels = list_names(root_of(images)), list_names(root_of(folder))
    start = len(root_of(images)) + 1
    first, path = next(iter(missing.items()))
    masks, _ = _group_masks(missing, find_files(dataset, path_key, "images"), has_scenes="*" in folder)
    if path_key == "labels" and missing.keys() <= masks.keys():
        hint = f" There are masks of single objects, such as {masks[first][0]}: write objects instead of labels."
    elif len(missing) == count:
        hint = explain_missing_labels(dataset, [path[start:] for path in missing.values()], in_labels)
    else:
        hint = f" {count - len(missing)} images have one: to use these alone, write list: a file with their names."
    raise InputError(
        f"{len(missing)} of {count} images of {dataset.key} have no label, first {path}; expected "
        f"{first}{dataset.label_suffix or '.png'} in {folder}: add it or take the image away."
        f"{hint or (f' Names there are like {in_labels[0]}.' if in_labels and in_labels != in_images else '')}"
    )


def _warn_of_unused(dataset: OwnDataset, path_key: str, files: list[str]) -> None:
    if files:
        logger.warning("%d %s of %s have no image, first %s.", len(files), path_key, dataset.key, files[0])


def load_instances(dataset: OwnDataset) -> list[Record]:
    """Read a COCO instance JSON to Detectron2's dataset dicts, with contiguous categories.

    Raises:
        InputError: a file or folder is missing, or the JSON's categories are not the dataset's.
    """
    content = _read_json(dataset, "instances", read_instance_json)
    used = {annotation["category_id"] for annotation in content["annotations"]}
    class_of_id = _match_categories(dataset, "instances", content["categories"], used)
    of_image: dict[Any, list[Record]] = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(_to_detectron2(annotation, class_of_id))
    return [
        _entry(
            *(dataset, os.path.join(dataset.paths["images"], image["file_name"])),
            **{"height": image["height"], "width": image["width"], "image_id": image["id"]},
            annotations=of_image.get(image["id"], []),
        )
        for image in content["images"]
    ]


def _to_detectron2(annotation: Record, class_of_id: dict[int, int]) -> Record:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, *segmentation["size"])
    kept: Record = {key: annotation[key] for key in ("iscrowd", "bbox") if key in annotation}
    category = class_of_id[annotation["category_id"]]
    return {**kept, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "segmentation": segmentation}


def load_panoptic(dataset: OwnDataset) -> list[Record]:
    """Read a COCO panoptic JSON to Detectron2's dataset dicts, with contiguous categories.

    Raises:
        InputError: a file or folder is missing, an image has no annotation, or the JSON's categories are not the
            dataset's.
    """
    content = _read_json(dataset, "panoptic", read_panoptic_json)
    _check_folder(dataset, "panoptic_masks")
    segments = [segment for annotation in content["annotations"] for segment in annotation["segments_info"]]
    _match_categories(dataset, "panoptic", content["categories"], {segment["category_id"] for segment in segments})
    annotated = {annotation["image_id"] for annotation in content["annotations"]}
    for image in content["images"]:
        if image["id"] not in annotated:
            raise InputError(
                f"Image {Path(dataset.paths['images'], image['file_name'])} has no annotation in "
                f"{dataset.paths['panoptic']} ({dataset.key}.panoptic): add it or take the image away."
            )
    listed = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in listed]
    records = registration.load_panoptic(
        content,
        image_root=dataset.paths["images"],
        panoptic_root=dataset.paths["panoptic_masks"],
        panoptic_json=dataset.paths["panoptic"],
        categories=_categories(dataset),
    )
    return [_entry(dataset, record.pop("file_name"), **record) for record in records]


_LOADERS: dict[str, Callable[[OwnDataset], list[Record]]] = {
    "labels": load_semantic,
    "objects": load_objects,
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
    left_out = [
        str(category.get("name")) for id_, category in in_json.items() if id_ not in class_of_id and id_ not in used
    ]
    if left_out:
        logger.info("Categories of %s that no annotation has are left out: %s.", json_file, ", ".join(left_out))
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


def _check_folder(dataset: OwnDataset, path_key: str) -> None:
    folder = dataset.paths[path_key]
    if not (folder.startswith(archives.PREFIX) or os.path.isdir(folder)):
        raise InputError(explain_missing_folder(f"{dataset.key}.{path_key}", folder))


def _read_json(dataset: OwnDataset, path_key: str, read: Callable[[str, str], Record]) -> Record:
    """Read a JSON whose images are there: those alone that a list names."""
    _check_folder(dataset, "images")
    path, folder = dataset.paths[path_key], dataset.paths["images"]
    if not PathManager.isfile(path):
        raise InputError(f"{dataset.key}.{path_key} is {path}, which is no file; correct the path.")
    content = read(path, f"{dataset.key}.{path_key}")
    if "categories" not in content:
        raise InputError(f"{path} ({dataset.key}.{path_key}) has no categories; expected COCO's format.")
    archived = {f"{folder}/{name}" for name in list_names(folder)} if folder.startswith(archives.PREFIX) else None
    paths = [join_inside(folder, image["file_name"].replace("\\", "/"), path) for image in content["images"]]
    if "list" in dataset.paths:
        named = {each[len(folder) + 1 :]: each for each in paths}
        chosen = {named[key] for key, _ in choose(dataset, named)}
        pairs = [(image, each) for image, each in zip(content["images"], paths, strict=True) if each in chosen]
        content["images"], paths = [image for image, _ in pairs], [each for _, each in pairs]
    for image, each in zip(content["images"], paths, strict=True):
        if not (os.path.isfile(each) if archived is None else each in archived):  # False too for an impossible name
            hint = explain_missing_image(folder, image["file_name"], list_names(folder))
            raise InputError(f"Image {each} does not exist but {path} names it; correct {dataset.key}.images.{hint}")
        image["file_name"] = each[len(folder) + 1 :]
    return content
