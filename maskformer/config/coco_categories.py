"""The classes that a COCO JSON lists, read before anything else of it: a model is built for so many."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from detectron2.utils.file_io import PathManager

from maskformer.structures import InputError

_MOST_BYTES = 2**24  # of a list of categories


@dataclass(frozen=True)
class Category:
    """One of a JSON's categories; ``is_thing`` is None in COCO's instance format."""

    id: int
    name: str
    is_thing: bool | None


def read_categories(path: str, key: str) -> list[Category]:
    """The categories of a COCO JSON, in the order of their ids.

    Roboflow lists the group of all classes as one more category, which no annotation has: it is left out.

    Args:
        path: absolute, or in an archive.
        key: where the user named it, for messages.

    Raises:
        InputError: the file cannot be read, or lists no categories as COCO does.
    """
    try:
        status = os.stat(_on_disk(path))
        return list(_read(path, (status.st_size, status.st_mtime_ns)))
    except OSError as error:
        raise InputError(
            f"{key} is {path}, which cannot be read: {error.strerror or error}; correct the path, or write the classes "
            "beside it (classes)."
        ) from error
    except ValueError as error:
        raise InputError(f"{key} is {path}, which {error}.") from error


def is_there(path: str) -> bool:
    """Whether a file, or the archive that it is in, exists."""
    return os.path.isfile(_on_disk(path))


def _on_disk(path: str) -> str:
    return re.sub(r"^zip://(.*?\.zip)(/.*)?$", r"\1", path, flags=re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=32)
def _read(path: str, _state: tuple[int, int]) -> tuple[Category, ...]:
    """Decode the list alone: the annotations beside it can be a gigabyte."""
    with PathManager.open(path, "rb") as file:
        content = file.read()
    entries = next(
        filter(None, (_decode(content, found.end()) for found in islice(_LISTS.finditer(content), 10))), None
    )
    if entries is None:
        raise ValueError(
            "lists no categories, each with an id (an integer) and a name (text); expected COCO's format, in UTF-8"
            f"{_explain(content)}"
        )
    ids = {entry["id"] for entry in entries}
    if len(ids) < len(entries):
        raise ValueError("lists two categories with one id; expected each id once: correct it")
    kept = [entry for entry in entries if not (_is_group(entry, entries) and not _is_used(entry["id"], content))]
    things = [entry.get("isthing") for entry in kept]
    categories = [
        Category(entry["id"], entry["name"], None if is_thing is None else bool(is_thing))
        for entry, is_thing in zip(kept, things, strict=True)
    ]
    return tuple(sorted(categories, key=lambda category: category.id))


_IMPORTED = (  # what a file of another program holds; the program, as import_dataset calls it
    (rb'"shapes"\s*:', rb'"imagePath"\s*:', "labelme"),
    (rb"<annotations", rb"<image\b", "cvat-xml"),
    (rb'"data"\s*:', rb'"annotations"\s*:\s*\[\s*\{\s*"id"|"completed_by"', "label-studio"),
    (rb'"classTitle"\s*:', rb'"objects"\s*:', "supervisely"),
)


def _explain(content: bytes) -> str:
    """Which program's file it is, as the end of a sentence."""
    for first, second, program in _IMPORTED:
        if re.search(first, content) and re.search(second, content):
            return (
                f", and this is one of {program}: python -m maskformer.tools.import_dataset --from {program} reads it"
            )
    return ""


_LISTS = re.compile(rb'"categories"\s*:\s*(?=\[)')


def _decode(content: bytes, start: int) -> list[dict[str, Any]] | None:
    """The list that begins there, if it is one of categories."""
    text = content[start : start + _MOST_BYTES].decode("utf-8", errors="replace")
    try:
        entries, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    are_categories = all(
        isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("name"), str)
        for entry in entries
    )
    return entries if are_categories else None


def _is_group(entry: dict[str, Any], entries: list[dict[str, Any]]) -> bool:
    """Whether a category is what Roboflow puts first: {"id": 0, "name": "cells", "supercategory": "none"}."""
    others = [other for other in entries if other is not entry]
    are_below = all(other.get("supercategory") == entry["name"] for other in others)
    return entry.get("supercategory") == "none" and bool(others) and are_below


def _is_used(category_id: int, content: bytes) -> bool:
    return re.search(rb'"category_id"\s*:\s*%d\b' % category_id, content) is not None
