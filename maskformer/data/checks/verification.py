"""Loading a dataset's entries, so that a mistake in it ends in one sentence before training starts."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import reprlib
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from maskformer.structures import InputError

from ..files.json_files import (
    check_annotation,
    check_segments,
    is_inside,
    read_instance_json,
    read_panoptic_json,
)
from ..files.masks import drawn_part, find_fault

logger = logging.getLogger(__name__)

Record = dict[str, Any]
NUM_IMAGES: dict[str, int] = {}  # of each dataset, when it was last loaded

_FOLDER_KEYS = ("image_root", "image_dir", "sem_seg_root", "gt_dir", "panoptic_root")  # Detectron2's names in metadata
_FOLDER_OF_FILE = {
    "file_name": "image_root",
    "sem_seg_file_name": "sem_seg_root",
    "pan_seg_file_name": "panoptic_root",
}
_PREPARATION = {  # part of a path under DETECTRON2_DATASETS: what makes it ready
    "ade20k_panoptic": "python datasets/prepare_ade20k_pan_seg.py",
    "ade20k_instance": "python datasets/prepare_ade20k_ins_seg.py",
    "ADEChallengeData2016": "python datasets/prepare_ade20k_sem_seg.py",
    "ADE20K_2021_17_01": "python datasets/prepare_ade20k_full_sem_seg.py",
    "coco_stuff_10k": "python datasets/prepare_coco_stuff_10k_v1.0_sem_seg.py",
    "cityscapes_panoptic": "python -m cityscapesscripts.preparation.createPanopticImgs",
    "shapes": "python -m maskformer.tools.make_shapes` or `make demo",
}


LOADING_ERRORS = (OSError, AssertionError, LookupError, TypeError, AttributeError, ValueError, RecursionError)


def verify_dataset(name: str, num_classes: int, *, is_train: bool) -> list[dict[str, Any]]:
    """Load a dataset and check what can be checked without opening its images.

    Args:
        name: as in ``DATASETS.TRAIN`` or ``DATASETS.TEST``.
        num_classes: K, ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``.
        is_train: whether it is to be trained on.

    Returns:
        Detectron2's dataset dicts, all of them: images without annotations are kept.

    Raises:
        InputError: it is not registered, a file or folder is missing or not prepared, it is empty, or its number of
            classes is another.
    """
    records = load_dataset(name, "DATASETS.TRAIN" if is_train else "DATASETS.TEST")
    metadata = MetadataCatalog.get(name)
    check_num_classes(name, metadata, records[0], num_classes, is_train=is_train)
    if metadata.get("own_key") is not None:  # which is paired already, and whose masks the workers look at
        return records
    if _json_file(metadata) is None:
        _check_labels(name, records)
    _check_pairs(name, records)
    return records


def load_dataset(name: str, config_key: str) -> list[dict[str, Any]]:
    """Load a dataset whose files are there.

    Args:
        name: of the dataset.
        config_key: where the user gave it, for messages.

    Returns:
        Detectron2's dataset dicts, one at least. An annotation whose mask is empty is left out: it is no object.

    Raises:
        InputError: it is not registered, a file or folder is missing or not prepared, its JSON lacks something, or it
            is empty.
    """
    check_registered(name, config_key)
    metadata = MetadataCatalog.get(name)
    _check_files(name, metadata)
    json_file = _json_file(metadata)
    if json_file is not None and not metadata.get("own_key"):  # first: Detectron2's loaders trust it
        status = os.stat(json_file)
        _check_json(json_file, json_file == metadata.get("panoptic_json"), (status.st_size, status.st_mtime_ns))
    records = _load(name)
    if not records:
        raise InputError(
            f"Dataset {name} is empty: no image has a label of the same name; expected at least one. Look into "
            f"{_roots(metadata)} or change {config_key}."
        )
    for record in records:
        if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
            raise InputError(
                f"Dataset {name} gives the entry {reprlib.repr(record)}; expected Detectron2's dataset dicts, with the "
                "path of the image as file_name: correct the function that is registered."
            )
    _check_places(name, metadata, records)
    NUM_IMAGES[name] = len(records)
    return [_with_drawn_masks(record, from_json=json_file is not None) for record in records]


def _json_file(metadata: Metadata) -> str | None:
    return metadata.get("panoptic_json") or metadata.get("json_file")


@functools.lru_cache
def _check_json(path: str, is_panoptic: bool, _state: tuple[int, int]) -> None:
    """Read a JSON, once while it stays as it is, for the sentence that names what is wrong with it."""
    if is_panoptic:
        read_panoptic_json(path, with_images=False)
    else:
        read_instance_json(path)


def _with_drawn_masks(record: Record, *, from_json: bool) -> Record:
    """An entry without the annotations that draw nothing; in those of a JSON, Detectron2's loader leaves no mask."""
    annotations = record.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        return record
    drawn = []
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        if not from_json and (segmentation is None or find_fault(annotation) is not None):
            drawn.append(annotation)  # what is wrong with it is told where it is needed
            continue
        part = None if segmentation is None else drawn_part(segmentation)
        if part is not None:
            drawn.append(annotation if part == segmentation else {**annotation, "segmentation": part})
    return {**record, "annotations": drawn}


def _check_labels(name: str, records: list[Record]) -> None:
    """Check what a Python function says of segments and instances."""
    for record in records:
        where = f"image {record['file_name']} (dataset {name})"
        if "pan_seg_file_name" in record:
            check_segments(record.get("segments_info"), f"The entry of {where}")
        elif _has_only_things(record):
            size = (record["height"], record["width"]) if {"height", "width"} <= record.keys() else None
            for annotation in record["annotations"]:
                check_annotation(annotation, f"An annotation of {where}", size)


def class_names(metadata: Metadata, record: dict[str, Any]) -> list[str] | None:
    """The list that the labels of an entry index: of things where it has instances alone, else of all classes."""
    return metadata.get("thing_classes" if _has_only_things(record) else "stuff_classes")


def _has_only_things(record: dict[str, Any]) -> bool:
    return "annotations" in record and not {"sem_seg_file_name", "pan_seg_file_name"} & record.keys()


def check_registered(name: str, config_key: str) -> None:
    """Raise an ``InputError`` unless Detectron2's catalog has the dataset that the user named as ``config_key``."""
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.keys(), n=3, cutoff=0.4)
        hint = f"close to it are {', '.join(close)}" if close else f"{len(DatasetCatalog)} others are registered"
        raise InputError(f"Dataset {name!r} is not registered; {hint}: change {config_key}.")


def _check_files(name: str, metadata: Metadata) -> None:
    if metadata.get("own_key"):  # its loader looks itself, and names the key of DATASETS.OWN
        return
    for key in _FOLDER_KEYS:
        folder = metadata.get(key)
        if folder is not None and not (os.path.isdir(folder) and os.listdir(folder)):
            raise InputError(f"Dataset {name} needs files in {folder}; {_why_missing(Path(folder))}")
    json_file = _json_file(metadata)
    if json_file is not None and not os.path.isfile(json_file):
        raise InputError(f"Dataset {name} needs the file {json_file}; {_why_missing(Path(json_file))}")


def _why_missing(path: Path) -> str:
    raw = Path(*("annotations" if part == "annotations_detectron2" else part for part in path.parts))
    if raw != path and raw.is_dir() and any(raw.iterdir()):
        return f"the labels in {raw} are there but not prepared: {_how_to_prepare(path)}."
    state = "the folder is empty" if path.is_dir() else "it does not exist"
    root = os.environ.get("DETECTRON2_DATASETS")
    setting = f"DETECTRON2_DATASETS is {root}" if root else "DETECTRON2_DATASETS is not set: ./datasets"
    return f"{state} ({setting}). Set it to the folder that holds the datasets and {_how_to_prepare(path)}."


def _how_to_prepare(path: Path) -> str:
    commands = [command for part, command in _PREPARATION.items() if any(p.startswith(part) for p in path.parts)]
    return f"run `{commands[0]}` (see datasets/README.md)" if commands else "lay them out as datasets/README.md says"


def _load(name: str) -> list[dict[str, Any]]:
    try:
        return DatasetCatalog.get(name)
    except InputError:
        raise
    except LOADING_ERRORS as error:  # what loaders of Detectron2 and of users raise
        raise InputError(
            f"Dataset {name} cannot be loaded: {type(error).__name__}: {error}. Compare its files with "
            "datasets/README.md and prepare them again."
        ) from error


def _check_places(name: str, metadata: Metadata, records: list[dict[str, Any]]) -> None:
    """Refuse files outside the dataset's folders: names in a JSON may lead anywhere."""
    for file_key, folder_key in _FOLDER_OF_FILE.items():
        folder = metadata.get(folder_key)
        files = (record.get(file_key) for record in records)
        outside = next((file for file in files if folder and file and not is_inside(str(file), str(folder))), None)
        if outside is not None:
            raise InputError(
                f"Dataset {name} names the file {outside}, which is not in {folder}; expected all of them there: "
                'correct the names in its JSON, which are to have no ".." and no absolute path.'
            )


def _check_pairs(name: str, records: list[dict[str, Any]]) -> None:
    """Find labels that bear another image's name: of equally many files, Detectron2 pairs blindly."""
    image_of = {Path(record["file_name"]).stem: record["file_name"] for record in records}
    for record in records:
        label = record.get("sem_seg_file_name")
        owner = image_of.get(Path(label).stem, record["file_name"]) if label else record["file_name"]
        if owner != record["file_name"]:
            raise InputError(
                f"Dataset {name} pairs the image {record['file_name']} with {label}, the label of {owner}; expected "
                "the same names in both folders: an image or a label is missing (datasets/README.md)."
            )


def _roots(metadata: Metadata) -> str:
    return " and ".join(metadata.get(key) for key in _FOLDER_KEYS if metadata.get(key)) or "its files"


def check_num_classes(
    name: str, metadata: Metadata, record: dict[str, Any], num_classes: int, *, is_train: bool
) -> None:
    """Compare K of a model with a dataset's, of which ``record`` is an entry.

    A model with things first may be evaluated, not trained, on instances of the things alone.

    Raises:
        InputError: they differ.
    """
    only_things = _has_only_things(record)
    names = class_names(metadata, record)
    if names is None:
        logger.warning("Dataset %s names no classes: MODEL.SEM_SEG_HEAD.NUM_CLASSES is not checked.", name)
        return
    fits = len(names) <= num_classes if only_things and not is_train else len(names) == num_classes
    if not fits:
        raise InputError(
            f"Dataset {name} has {len(names)} classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}; expected "
            f"equal numbers: set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {len(names)} or choose another dataset."
        )
