"""Reading a dataset's JSON, so that what is wrong with it is named before a training, with the file and the entry.

COCO's two formats are known: panoptic (``segments_info``) and instances. What a file says is trusted in nothing: ids
may be of any type and occur twice, numbers may be NaN, and file names may lead out of the dataset's folder. What each
reader requires is required in training, evaluation and ``check_dataset`` alike. What may be left out is filled in:
``iscrowd`` is 0, the ``area`` of an instance that of its mask. An instance whose mask is empty is no object.
"""

from __future__ import annotations

import json
import logging
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager

from maskformer.structures import InputError

from .masks import ObjectMasks, drawn_part, find_fault, mask_area
from .reading import picture_size

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Check = tuple[Callable[[Any], bool], str]  # whether a value is right, and what is expected

MAX_SEGMENT_ID = 2**24 - 1  # a panoptic PNG's pixel has 24 bits
_MAX_SIDE = 2**20  # pixels; far above any image


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and type(value) is not bool and bool(-(2**31) < value < 2**31)


def _is_name(value: Any) -> bool:
    if not isinstance(value, str) or value == "" or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True


_INTEGER: Check = (_is_integer, "an integer")
_NAME: Check = (_is_name, "text, such as the name of a file")
_FLAG: Check = (lambda value: value in (0, 1), "0 or 1")
_ID: Check = (
    lambda value: isinstance(value, str) or (type(value) is int and abs(value) < 2**63),
    "a number or text",
)
_SIDE: Check = (lambda value: type(value) is int and 1 <= value <= _MAX_SIDE, f"pixels, 1 to {_MAX_SIDE}")
_SEGMENT_ID: Check = (
    lambda value: _is_integer(value) and 1 <= value <= MAX_SEGMENT_ID,
    f"an integer from 1 to {MAX_SEGMENT_ID}",
)
_AREA: Check = (
    lambda value: isinstance(value, (int, float)) and type(value) is not bool and 0 <= value < 2**63,
    "a number of pixels",
)

# What each kind of entry has; some keys may be absent, but not wrong.
_OPTIONAL = ("iscrowd", "area")
_COMMON = {"category_id": _INTEGER, "iscrowd": _FLAG, "area": _AREA}
_SEGMENT = {"id": _SEGMENT_ID, **_COMMON}
_IMAGE = {"id": _ID, "file_name": _NAME, "height": _SIDE, "width": _SIDE}
_PANOPTIC_CATEGORY = {"id": _INTEGER, "isthing": (lambda value: value in (0, 1), "1 for a thing, 0 for stuff")}


def _require(
    is_met: bool, where: str, key: str, value: Any, expected: str, error: type[InputError] = InputError
) -> None:
    if not is_met:
        raise error(f"{where} has {key} {reprlib.repr(value)}; expected {expected}: correct it or write it again.")


def _check_entry(entry: Any, checks: Mapping[str, Check], where: str, error: type[InputError] = InputError) -> None:
    if not isinstance(entry, dict):
        raise error(f"{where} holds {reprlib.repr(entry)}; expected keys and values: write it again.")
    for key, (is_right, expected) in checks.items():
        if (key in entry or key not in _OPTIONAL) and not is_right(entry.get(key)):
            _require(False, where, key, entry.get(key), expected, error)


def _by_id(
    entries: Sequence[Any],
    checks: Mapping[str, Check],
    where: Callable[[int], str],
    key: str = "id",
    error: type[InputError] = InputError,
) -> dict[Any, Record]:
    """Check entries, of which each has its own id, and find them by it."""
    found: dict[Any, Record] = {}
    for index, entry in enumerate(entries):
        _check_entry(entry, checks, where(index), error)
        if entry[key] in found:
            _require(False, where(index), key, entry[key], "each id once, this is the second", error)
        found[entry[key]] = entry
    return found


def read_json(path: str | Path, origin: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        origin: where the user named it, for messages: a configuration key.

    Raises:
        InputError: it cannot be read or is no JSON.
    """
    head = f"{origin} is {path}, which" if origin else str(path)
    try:
        with PathManager.open(str(path), "rb") as file:
            return json.loads(file.read().decode("utf-8-sig"))  # Windows' editors begin with a mark
    except OSError as error:
        raise InputError(f"{head} cannot be read: {error.strerror}; restore it.") from error
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"{error}"
        raise InputError(f"{head} is no JSON: {reason}; restore it or write it again.") from error


def read_panoptic_json(path: str | Path, origin: str = "", *, with_images: bool = True) -> Record:
    """Read and check a file of COCO's panoptic format.

    Args:
        path: of the file.
        origin: where the user named it.
        with_images: whether ``images`` is needed, to load them; to measure, nothing of it is.

    Returns:
        ``images``, ``annotations`` and, where the file has them, ``categories``; every segment has ``iscrowd``.

    Raises:
        InputError: it cannot be read, lacks something, or holds an id twice.
    """
    name = _name(path, origin)
    content = _check_panoptic(read_json(path, origin), name)
    if with_images:
        images = _check_images(content, name)
        for index, annotation in enumerate(content["annotations"]):
            image_id, where = annotation["image_id"], f"Annotation {index} of {name}"
            _require(image_id in images, where, "image_id", image_id, "the id of one of its images")
    return content


def read_instance_json(path: str | Path, origin: str = "") -> Record:
    """Read and check a file of COCO's instance format; ``origin`` is as in ``read_json``.

    Returns:
        ``images``, ``annotations`` and ``categories``; every annotation is an object, with ``iscrowd`` and ``area``.

    Raises:
        InputError: it cannot be read, lacks something, holds an id twice, or a box or mask that is none.
    """
    return _complete_instances(read_json(path, origin), _name(path, origin))


def _check_panoptic(content: Any, name: str) -> Record:
    _check_lists(content, name, ("annotations",))
    known = _by_id(content.get("categories", []), _PANOPTIC_CATEGORY, lambda index: f"Category {index} of {name}")
    checks = {"image_id": _ID, "file_name": _NAME}
    _by_id(content["annotations"], checks, lambda index: f"Annotation {index} of {name}", "image_id")
    for index, annotation in enumerate(content["annotations"]):
        where = f"Annotation {index} of {name} (image {annotation['image_id']})"
        check_segments(annotation.get("segments_info"), where)
        for segment in annotation["segments_info"]:
            is_known = segment["category_id"] in known or "categories" not in content
            _require(is_known, where, "category_id", segment["category_id"], "the id of one of its categories")
            segment.setdefault("iscrowd", 0)
    return content


def _complete_instances(content: Any, name: str) -> Record:
    """Check images and annotations of COCO's instance format, and fill in what may be left out."""
    _check_lists(content, name, ("annotations", "images", "categories"))
    categories = {"id": _INTEGER, "name": _NAME}
    known = _by_id(content["categories"], categories, lambda index: f"Category {index} of {name}")
    images = _check_images(content, name)
    _by_id(content["annotations"], {"id": _ID, "image_id": _ID}, lambda index: f"Annotation {index} of {name}")
    objects = []
    _take_brushed_as_objects(content["annotations"], name)
    for index, annotation in enumerate(content["annotations"]):
        image = images.get(annotation["image_id"])  # COCO's own tools pass over annotations of one that is not listed
        size = None if image is None else (image["height"], image["width"])
        where = f"Annotation {index} of {name} (id {annotation['id']}, image {annotation['image_id']})"
        check_annotation(annotation, where, size)
        category = annotation["category_id"]
        _require(category in known, where, "category_id", category, "the id of one of its categories")
        segmentation = drawn_part(annotation["segmentation"])
        if segmentation is not None:
            annotation["segmentation"] = segmentation
            annotation.setdefault("iscrowd", 0)
            if "area" not in annotation:  # which takes its time
                annotation["area"] = mask_area(segmentation)
            objects.append(annotation)
    _report_lost(content["annotations"], objects, images, name)
    return {**content, "annotations": objects}


def _take_brushed_as_objects(annotations: list[Record], name: str) -> None:
    """Undo that CVAT exports whatever is drawn with its brush as a crowd; only it says what is occluded."""
    brushed = [
        annotation
        for annotation in annotations
        if annotation.get("iscrowd") == 1
        and isinstance(annotation.get("segmentation"), dict)
        and isinstance(annotation.get("attributes"), dict)
        and "occluded" in annotation["attributes"]
    ]
    for annotation in brushed:
        annotation["iscrowd"] = 0
    if brushed:
        logger.info(
            "%d masks of %s are CVAT's, which marks all that are no polygons as crowds: they are objects.",
            len(brushed),
            name,
        )


def _check_lists(content: Any, name: str, needed: Sequence[str]) -> None:
    for key in (*needed, "categories"):
        value = content.get(key, None if key in needed else []) if isinstance(content, dict) else None
        if not isinstance(value, list):
            state = f"has no {key}" if value is None else f"holds {reprlib.repr(value)} as {key}"
            raise InputError(f"{name} {state}; expected COCO's format, where it is a list.")


def _check_images(content: Record, name: str) -> dict[Any, Record]:
    _check_lists(content, name, ("images",))
    images = _by_id(content["images"], _IMAGE, lambda index: f"Image {index} of {name}")
    if len({type(image_id) for image_id in images}) > 1:
        raise InputError(f"The images of {name} have ids of different types; expected numbers alone, or text alone.")
    return images


def _report_lost(annotations: list[Record], objects: list[Record], images: Record, name: str) -> None:
    unlisted = [annotation["image_id"] for annotation in annotations if annotation["image_id"] not in images]
    if unlisted and len(unlisted) == len(annotations):
        raise InputError(
            f"All annotations of {name} are of images that it does not list, first {reprlib.repr(unlisted[0])}; "
            f"expected ids of its images, such as {reprlib.repr(next(iter(images), None))}: correct image_id."
        )
    if annotations and not objects and all(each["segmentation"] == [] for each in annotations):
        raise InputError(
            f"All {len(annotations)} annotations of {name} have boxes alone (segmentation is []); expected polygons or "
            "RLE: export segmentation instead of detection."
        )
    for number, what in (
        (len(unlisted), "are of images that it does not list"),
        (len(annotations) - len(objects), "have an empty mask and are no objects"),
    ):
        if number:
            logger.warning("%d of %d annotations of %s %s.", number, len(annotations), name, what)


def check_segments(segments: Any, where: str, error: type[InputError] = InputError) -> None:
    """Check the ``segments_info`` of one image; ``where`` begins a message.

    Raises:
        InputError: an entry lacks something, or two have one id.
    """
    _require(isinstance(segments, list), where, "segments_info", segments, "a list", error)
    _by_id(segments, _SEGMENT, lambda index: f"{where}, segment {index},", error=error)


def check_annotation(
    annotation: Any, where: str, size: tuple[int, int] | None = None, error: type[InputError] = InputError
) -> None:
    """Check one annotated instance.

    Args:
        annotation: with ``category_id`` and ``segmentation``.
        where: it is, as the beginning of a message.
        size: (height, width) of its image; None: not known.
        error: what to raise.

    Raises:
        InputError: it lacks something, or its box or mask is none.
    """
    _check_entry(annotation, _COMMON, where, error)
    if annotation.get("segmentation") is None:
        raise error(f"{where} has no mask (segmentation); expected polygons or RLE: name a dataset with masks.")
    fault = find_fault(annotation, size)
    if fault:
        raise error(f"{where} {fault}: correct or remove it.")


def instances_of_records(records: Sequence[Mapping[str, Any]], names: Sequence[str], where: str) -> Record:
    """What ``read_instance_json`` gives, of a dataset that is a Python function.

    Args:
        records: Detectron2's dataset dicts with ``height``, ``width`` and ``annotations``; where there is no
            ``image_id``, the index stands for it.
        names: of the classes, whose index is the ``category_id``.
        where: what to call the dataset in messages.

    Raises:
        InputError: as ``read_instance_json``.
    """
    images: list[Record] = []
    annotations: list[Any] = []
    for index, record in enumerate(records):
        has_files = isinstance(record.get("annotations"), ObjectMasks)
        size = picture_size(record["file_name"], record.get("bands")) if has_files else (None, None)
        fields = {key: _plain(record.get(key, side)) for key, side in zip(("height", "width"), size)}
        images.append({"id": _plain(record.get("image_id", index)), "file_name": str(record["file_name"]), **fields})
        for annotation in record.get("annotations", []):
            check_annotation(annotation, f"An annotation of image {record['file_name']} ({where})")
            used = ("category_id", "iscrowd", "segmentation")
            kept = {key: _plain(annotation[key]) for key in used if key in annotation}
            annotations.append({**kept, "id": len(annotations) + 1, "image_id": images[-1]["id"]})
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    return _complete_instances({"images": images, "annotations": annotations, "categories": categories}, where)


def panoptic_of_records(records: Sequence[Mapping[str, Any]], metadata: Metadata, where: str) -> Record:
    """What ``read_panoptic_json`` gives, of a dataset that is a Python function.

    Args:
        records: Detectron2's dataset dicts with ``pan_seg_file_name`` and ``segments_info``; where there is no
            ``image_id``, the index stands for it. A ``category_id`` is the index of its class.
        metadata: of the dataset: ``stuff_classes`` names all classes. The things among them are those of
            ``thing_dataset_id_to_contiguous_id``, else those of segments with ``isthing``, else ``thing_classes``.
        where: what to call the dataset in messages.

    Raises:
        InputError: as ``read_panoptic_json``; or classes are not named.
    """
    names = metadata.get("stuff_classes")
    if names is None:
        raise InputError(f"The {where} names no classes; set stuff_classes in its metadata.")
    images, annotations = [], []
    for index, record in enumerate(records):
        name = f"Image {record['file_name']} ({where})"
        check_segments(record.get("segments_info"), name)
        segments = [{"iscrowd": 0, **segment} for segment in record["segments_info"]]
        for segment in segments:
            is_known = 0 <= segment["category_id"] < len(names)
            _require(is_known, name, "category_id", segment["category_id"], f"0..{len(names) - 1}")
        _check_entry(record, {"pan_seg_file_name": _NAME}, name)
        image_id = _plain(record.get("image_id", index))
        images.append({"id": image_id, "file_name": str(record["file_name"])})
        file_name = record["pan_seg_file_name"]
        annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
    table = metadata.get("thing_dataset_id_to_contiguous_id")
    told = [segment for annotation in annotations for segment in annotation["segments_info"] if "isthing" in segment]
    if table is not None:
        things = set(table.values())
    elif told:
        things = {segment["category_id"] for segment in told if segment["isthing"]}
    else:
        things = {index for index, name in enumerate(names) if name in metadata.get("thing_classes", [])}
    categories = [{"id": index, "name": name, "isthing": int(index in things)} for index, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def join_inside(folder: str | Path, file_name: str, source: str | Path) -> str:
    """Join a folder and a file name that the file ``source`` gave, which must not lead out of the folder.

    Raises:
        InputError: the name is absolute or has a "..".
    """
    joined = os.path.join(folder, file_name)
    if not is_inside(joined, str(folder)):
        raise InputError(
            f"{source} names the file {reprlib.repr(file_name)}, which is not in {folder}; expected a name relative to "
            'that folder, without "..": correct it.'
        )
    return joined


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is below a folder, without a ".." on the way: behind a link, that would lead anywhere."""
    if path.startswith(folder + os.sep) and os.pardir not in path[len(folder) :]:
        return True
    if Path(path).parts.count(os.pardir) > Path(folder).parts.count(os.pardir):
        return False
    return os.path.relpath(path, folder).split(os.sep, 1)[0] != os.pardir


def _name(path: str | Path, origin: str) -> str:
    return f"{path} ({origin})" if origin else str(path)
