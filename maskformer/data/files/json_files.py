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

from maskformer.structures import InputError

from .annotations import drawn_part, find_fault, mask_area

logger = logging.getLogger(__name__)

Record = dict[str, Any]

MAX_SEGMENT_ID = 2**24 - 1  # a panoptic PNG's pixel has 24 bits
_MAX_SIDE = 2**20  # pixels; far above any image


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
        return json.loads(Path(path).read_text(encoding="utf-8"))
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
    content = _read_lists(path, origin, ("annotations", *(("images",) if with_images else ())))
    name = _name(path, origin)
    categories = content.get("categories", [])
    for index, category in enumerate(categories):
        _require("isthing" in category, f"Category {index} of {name}", "isthing", None, "1 for a thing, 0 for stuff")
    known = {category["id"] for category in categories}
    images = _check_images(content["images"], name) if with_images else {}
    seen: set[Any] = set()
    for index, annotation in enumerate(content["annotations"]):
        where = f"Annotation {index} of {name}"
        image_id = _field(annotation, "image_id", where, _is_id, "a number or text")
        _require(image_id in images or not with_images, where, "image_id", image_id, "the id of one of its images")
        _require(image_id not in seen, where, "image_id", image_id, "one annotation of an image, this is the second")
        seen.add(image_id)
        _field(annotation, "file_name", where, _is_name, "the name of a PNG")
        where = f"{where} (image {image_id})"
        check_segments(annotation.get("segments_info"), where)
        for segment in annotation["segments_info"]:
            is_known = segment["category_id"] in known or "categories" not in content
            _require(is_known, where, "category_id", segment["category_id"], _ONE_LISTED)
            segment.setdefault("iscrowd", 0)
    return content


def check_segments(segments: Any, where: str, error: type[InputError] = InputError) -> None:
    """Check the ``segments_info`` of one image.

    Args:
        segments: entries with ``id`` and ``category_id``.
        where: they are, as the beginning of a message.
        error: what to raise.

    Raises:
        InputError: an entry lacks something, or two have one id.
    """
    _require(isinstance(segments, list), where, "segments_info", segments, "a list", error)
    seen: set[int] = set()
    for segment in segments:
        segment_id = _field(segment, "id", where, _is_segment_id, f"an integer from 1 to {MAX_SEGMENT_ID}", error)
        _require(segment_id not in seen, where, "the segment id", segment_id, "each id once, this is the second", error)
        seen.add(segment_id)
        _check_common(segment, where, error)


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
    _check_common(annotation, where, error)
    if annotation.get("segmentation") is None:
        raise error(f"{where} has no mask (segmentation); expected polygons or RLE: name a dataset with masks.")
    fault = find_fault(annotation, size)
    if fault:
        raise error(f"{where} {fault}: correct or remove it.")


def read_instance_json(path: str | Path, origin: str = "") -> Record:
    """Read and check a file of COCO's instance format.

    Args:
        path: of the file.
        origin: where the user named it.

    Returns:
        ``images``, ``annotations`` and ``categories``; every annotation is an object, with ``iscrowd`` and ``area``.

    Raises:
        InputError: it cannot be read, lacks something, holds an id twice, or a box or mask that is none.
    """
    content = _read_lists(path, origin, ("annotations", "images", "categories"))
    return _complete_instances(content, _name(path, origin))


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
        fields = {key: _plain(record.get(key)) for key in ("height", "width")}
        images.append({"id": _plain(record.get("image_id", index)), "file_name": str(record["file_name"]), **fields})
        for annotation in record.get("annotations", []):
            check_annotation(annotation, f"An annotation of image {record['file_name']} ({where})")
            kept = {key: _plain(annotation[key]) for key in _USED_OF_INSTANCE if key in annotation}
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
        file_name = _field(record, "pan_seg_file_name", name, _is_name, "the name of a PNG")
        image_id = _plain(record.get("image_id", index))
        images.append({"id": image_id, "file_name": str(record["file_name"])})
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


_USED_OF_INSTANCE = ("category_id", "iscrowd", "segmentation")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _complete_instances(content: Record, name: str) -> Record:
    """Check images and annotations of COCO's instance format, and fill in what may be left out."""
    known = {category["id"] for category in content["categories"]}
    for index, category in enumerate(content["categories"]):
        _field(category, "name", f"Category {index} of {name}", _is_name, "text")
    images = _check_images(content["images"], name)
    seen: set[Any] = set()
    objects = []
    for index, annotation in enumerate(content["annotations"]):
        where = f"Annotation {index} of {name}"
        annotation_id = _field(annotation, "id", where, _is_id, "a number or text")
        _require(annotation_id not in seen, where, "id", annotation_id, "each id once, this is the second")
        seen.add(annotation_id)
        image_id = _field(annotation, "image_id", where, _is_id, "a number or text")
        image = images.get(image_id)  # COCO's own tools pass over annotations of an image that is not listed
        size = None if image is None else (image["height"], image["width"])
        where = f"{where} (id {annotation_id}, image {image_id})"
        check_annotation(annotation, where, size)
        _require(annotation["category_id"] in known, where, "category_id", annotation["category_id"], _ONE_LISTED)
        segmentation = drawn_part(annotation["segmentation"])
        if segmentation is not None:
            annotation.setdefault("iscrowd", 0)
            if "area" not in annotation:
                annotation["area"] = mask_area(segmentation)
            objects.append({**annotation, "segmentation": segmentation})
    _report_lost(content["annotations"], objects, images, name)
    return {**content, "annotations": objects}


def _report_lost(annotations: list[Record], objects: list[Record], images: Record, name: str) -> None:
    unlisted = [annotation["image_id"] for annotation in annotations if annotation["image_id"] not in images]
    if unlisted and len(unlisted) == len(annotations):
        raise InputError(
            f"All annotations of {name} are of images that it does not list, first {reprlib.repr(unlisted[0])}; "
            f"expected ids of its images, such as {reprlib.repr(next(iter(images), None))}: correct image_id."
        )
    for number, what in (
        (len(unlisted), "are of images that it does not list"),
        (len(annotations) - len(objects), "have an empty mask and are no objects"),
    ):
        if number:
            logger.warning("%d of %d annotations of %s %s.", number, len(annotations), name, what)


def join_inside(folder: str | Path, file_name: str, source: str | Path) -> str:
    """Join a folder and a file name that a file gave, which must not lead out of the folder.

    Args:
        folder: of the dataset.
        file_name: relative to it.
        source: the file that gave the name, for the message.

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


def _read_lists(path: str | Path, origin: str, needed: Sequence[str]) -> Record:
    content = read_json(path, origin)
    for key in (*needed, "categories"):
        value = content.get(key, None if key in needed else []) if isinstance(content, dict) else None
        if not isinstance(value, list):
            state = f"has no {key}" if value is None else f"holds {reprlib.repr(value)} as {key}"
            raise InputError(f"{_name(path, origin)} {state}; expected COCO's format, where it is a list.")
    result: Record = content
    _check_categories(result.get("categories", []), _name(path, origin))
    return result


def _check_categories(categories: list[Any], name: str) -> None:
    seen: set[int] = set()
    for index, category in enumerate(categories):
        where = f"Category {index} of {name}"
        category_id = _field(category, "id", where, _is_integer, "an integer")
        _require(category_id not in seen, where, "id", category_id, "each id once, this is the second")
        seen.add(category_id)
        if "name" in category:
            _field(category, "name", where, _is_name, "text")
        _field(category, "isthing", where, _is_flag, "0 or 1")


def _check_images(images: list[Any], name: str) -> dict[Any, Record]:
    """Images by id."""
    by_id: dict[Any, Record] = {}
    for index, image in enumerate(images):
        where = f"Image {index} of {name}"
        image_id = _field(image, "id", where, _is_id, "a number or text")
        _require(image_id not in by_id, where, "id", image_id, "each id once, this is the second")
        _field(image, "file_name", where, _is_name, "the name of a file")
        for side in ("height", "width"):
            _field(image, side, where, _is_side, f"pixels, 1 to {_MAX_SIDE}")
        by_id[image_id] = image
    if len({type(image_id) for image_id in by_id}) > 1:
        raise InputError(f"The images of {name} have ids of different types; expected numbers alone, or text alone.")
    return by_id


def _check_common(entry: Any, where: str, error: type[InputError]) -> None:
    """What a segment and an instance have in common."""
    _field(entry, "category_id", where, _is_integer, "an integer", error)
    _field(entry, "iscrowd", where, _is_flag, "0 or 1", error)
    _field(entry, "area", where, _is_area, "a number of pixels", error)


def _field(
    entry: Any,
    key: str,
    where: str,
    is_valid: Callable[[Any], bool],
    expected: str,
    error: type[InputError] = InputError,
) -> Any:
    """The value of a key, valid; None where an optional key is absent."""
    if not isinstance(entry, dict):
        raise error(f"{where} holds {reprlib.repr(entry)}; expected keys and values: write it again.")
    if key in _OPTIONAL and key not in entry:
        return None
    value = entry.get(key)
    _require(is_valid(value), where, key, value, expected, error)
    return value


_OPTIONAL = ("iscrowd", "isthing", "area")
_ONE_LISTED = "the id of one of its categories"


def _require(
    is_met: bool, where: str, key: str, value: Any, expected: str, error: type[InputError] = InputError
) -> None:
    if not is_met:
        raise error(f"{where} has {key} {reprlib.repr(value)}; expected {expected}: correct it or write it again.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and type(value) is not bool and bool(-(2**31) < value < 2**31)


def _is_area(value: Any) -> bool:
    return isinstance(value, (int, float)) and type(value) is not bool and 0 <= value < 2**63


def _is_segment_id(value: Any) -> bool:
    return _is_integer(value) and 1 <= value <= MAX_SEGMENT_ID


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MAX_SIDE


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (type(value) is int and abs(value) < 2**63)


def _is_name(value: Any) -> bool:
    if not isinstance(value, str) or value == "" or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True


def _is_flag(value: Any) -> bool:
    return value in (0, 1)
