"""Reading a dataset's JSON, so that what is wrong with it is named before a training, with the file and the entry.

COCO's two formats are known: panoptic (``segments_info``) and instances. What a file says is trusted in nothing: ids
may be of any type and occur twice, numbers may be NaN, and file names may lead out of the dataset's folder.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from maskformer.data.annotations import find_fault
from maskformer.structures import InputError

Record = dict[str, Any]

MAX_SEGMENT_ID = 2**24 - 1  # a panoptic PNG's pixel has 24 bits
IMAGE_FIELDS = ("file_name", "height", "width")  # what loading an image needs to know besides its id
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


def read_panoptic_json(
    path: str | Path, origin: str = "", *, image_fields: Collection[str] | None = IMAGE_FIELDS
) -> Record:
    """Read and check a file of COCO's panoptic format.

    Args:
        path: of the file.
        origin: where the user named it.
        image_fields: what each of ``images`` needs besides its id: nothing to measure. None: there may be no
            ``images``, as in Cityscapes, whose file names say enough.

    Returns:
        ``images``, ``annotations`` and, where the file has them, ``categories``.

    Raises:
        InputError: it cannot be read, lacks something, or holds an id twice.
    """
    has_images = image_fields is not None
    content = _read_lists(path, origin, ("annotations", "images") if has_images else ("annotations",))
    name = _name(path, origin)
    images = {} if image_fields is None else _check_images(content, name, image_fields)
    seen: set[Any] = set()
    for index, annotation in enumerate(content["annotations"]):
        where = f"Annotation {index} of {name}"
        image_id = _field(annotation, "image_id", where, _is_id, "a number or text")
        _require(image_id in images or not has_images, where, "image_id", image_id, "the id of one of its images")
        _require(image_id not in seen, where, "image_id", image_id, "one annotation of an image, this is the second")
        seen.add(image_id)
        _field(annotation, "file_name", where, _is_name, "the name of a PNG")
        segments = _field(annotation, "segments_info", where, _is_list, "a list")
        check_segments(segments, f"{where} (image {image_id})")
    return content


def check_segments(segments: list[Any], where: str, error: type[InputError] = InputError) -> None:
    """Check the ``segments_info`` of one image.

    Args:
        segments: entries with ``id`` and ``category_id``.
        where: they are, as the beginning of a message.
        error: what to raise.

    Raises:
        InputError: an entry lacks something, or two have one id.
    """
    seen: set[int] = set()
    for segment in segments:
        segment_id = _field(segment, "id", where, _is_segment_id, f"an integer from 1 to {MAX_SEGMENT_ID}", error)
        _require(segment_id not in seen, where, "the segment id", segment_id, "each id once, this is the second", error)
        seen.add(segment_id)
        _field(segment, "category_id", where, _is_integer, "an integer", error)
        _field(segment, "iscrowd", where, _is_flag, "0 or 1", error)


def read_instance_json(path: str | Path, origin: str = "") -> Record:
    """Read and check a file of COCO's instance format.

    Args:
        path: of the file.
        origin: where the user named it.

    Returns:
        ``images``, ``annotations`` and ``categories``.

    Raises:
        InputError: it cannot be read, lacks something, holds an id twice, or a box or mask that is none.
    """
    content = _read_lists(path, origin, ("annotations", "images"))
    name = _name(path, origin)
    if "categories" not in content:
        raise InputError(f"{name} has no categories; expected COCO's format.")
    for index, category in enumerate(content["categories"]):
        _field(category, "name", f"Category {index} of {name}", _is_name, "text")
    images = _check_images(content, name, IMAGE_FIELDS)
    seen: set[Any] = set()
    for index, annotation in enumerate(content["annotations"]):
        where = f"Annotation {index} of {name}"
        annotation_id = _field(annotation, "id", where, _is_id, "a number or text")
        _require(annotation_id not in seen, where, "id", annotation_id, "each id once, this is the second")
        seen.add(annotation_id)
        image_id = _field(annotation, "image_id", where, _is_id, "a number or text")
        _field(annotation, "category_id", where, _is_integer, "an integer")
        _field(annotation, "iscrowd", where, _is_flag, "0 or 1")
        image = images.get(image_id, {})  # COCO's own tools pass over annotations of an image that is not listed
        size = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None
        fault = find_fault(annotation, size)
        if fault:
            raise InputError(f"{where} (id {annotation_id}, image {image_id}) {fault}: correct or remove it.")
    return content


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
        value = content.get(key, [] if key == "categories" else None) if isinstance(content, dict) else None
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


def _check_images(content: Record, name: str, needed: Collection[str]) -> dict[Any, Record]:
    """Images by id; other names and sizes than those needed may be absent, but not wrong."""
    images: dict[Any, Record] = {}
    for index, image in enumerate(content["images"]):
        where = f"Image {index} of {name}"
        image_id = _field(image, "id", where, _is_id, "a number or text")
        _require(image_id not in images, where, "id", image_id, "each id once, this is the second")
        if "file_name" in needed or "file_name" in image:
            _field(image, "file_name", where, _is_name, "the name of a file")
        for side in ("height", "width"):
            if side in needed or side in image:
                _field(image, side, where, _is_side, f"pixels, 1 to {_MAX_SIDE}")
        images[image_id] = image
    if len({type(image_id) for image_id in images}) > 1:
        raise InputError(f"The images of {name} have ids of different types; expected numbers alone, or text alone.")
    return images


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


_OPTIONAL = ("iscrowd", "isthing")


def _require(
    is_met: bool, where: str, key: str, value: Any, expected: str, error: type[InputError] = InputError
) -> None:
    if not is_met:
        raise error(f"{where} has {key} {reprlib.repr(value)}; expected {expected}: correct it or write it again.")


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**31


def _is_segment_id(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SEGMENT_ID


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


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_flag(value: Any) -> bool:
    return value in (0, 1)
