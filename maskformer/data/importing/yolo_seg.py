"""YOLO's segmentation format, as Ultralytics documents it (https://docs.ultralytics.com/datasets/segment).

``data.yaml`` has ``names`` (a list, or numbers and names), ``path``, and for each split a folder, a list of folders, or
a text file of pictures. ``images/a/b.jpg`` has its labels in ``labels/a/b.txt``: a row ``class x1 y1 x2 y2 ...`` for
each object, in fractions of width and height. Parts of one object are joined by lines in one polygon, and stay so.
"""

from __future__ import annotations

import os
import reprlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maskformer.structures import InputError

from .outlines import BAD, UNKNOWN_CLASS, Shapes, from_polygon
from .source import Annotated, Entry, Losses, Pictures, Size, Source, entry_of_file, read_text

SPLITS = ("train", "val", "valid", "test")
BOXES = "boxes without an outline (rows of detection)"
ROWS = "rows that are no polygon"
UNLABELLED = "pictures without a file of labels, taken to be empty"
MISSING = "pictures that are missing"
_SLACK = 0.01  # of the side, that a corner may lie outside of the picture; it is moved to the edge


def read(root: Path, main: Path | None, losses: Losses) -> Source:
    """Read a dataset by its ``data.yaml``.

    Raises:
        InputError: there is none, or it does not say what is needed.
    """
    file = main or _find_yaml(root)
    content = _read_yaml(file)
    names = _read_names(file, content.get("names"))
    pictures = Pictures(root)
    start = os.path.relpath(file.parent, root)
    splits: dict[str, list[Entry]] = {}
    for split in SPLITS:
        found = [name for place in _as_list(content.get(split)) for name in _list_pictures(pictures, file, start,
                 content.get("path"), place, split, losses)]  # fmt: skip
        if found:
            splits[split] = [
                entry_of_file(pictures, name, partial(_annotate, pictures, name, names, losses))
                for name in dict.fromkeys(found)
            ]
    if not splits:
        expected = "train, val or test with a folder or a list of pictures in the same folder as the file"
        raise InputError(f"{file} leads to no picture in {root}; expected {expected}.")
    return Source(tuple(names.values()), splits)


def _find_yaml(root: Path) -> Path:
    found = [path for path in sorted(root.glob("*.y*ml")) if "names" in _read_yaml(path)]
    preferred = [path for path in found if path.stem in ("data", "dataset")] or found
    if len(preferred) != 1:
        seen = ", ".join(path.name for path in preferred) or "no YAML file with names"
        raise InputError(
            f"{root} has {seen}; expected one that names classes and pictures, such as data.yaml: name it as SOURCE, "
            "or write it as Ultralytics documents it."
        )
    return preferred[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}; restore it.") from error
    return content if isinstance(content, dict) else {}


def _read_names(file: Path, names: Any) -> dict[int, str]:
    pairs = (
        list(names.items()) if isinstance(names, dict) else list(enumerate(names if isinstance(names, list) else []))
    )
    try:
        found = {int(number): str(name) for number, name in pairs if not isinstance(name, dict | list)}
    except (TypeError, ValueError):
        found = {}
    if not found or len(found) < len(pairs):
        raise InputError(f"{file} has names {reprlib.repr(names)}; expected the name of each class: correct it.")
    return dict(sorted(found.items()))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _list_pictures(
    pictures: Pictures, file: Path, start: str, base: Any, place: Any, split: str, losses: Losses
) -> list[str]:
    """The pictures of one place that a split names: a folder, or a file that lists them."""
    base, place = str(base or "").replace("\\", "/"), str(place).replace("\\", "/")
    # Exports of Roboflow say ../train/images and mean train/images.
    tried = [os.path.join(start, base, place), os.path.join(start, place), os.path.join(start, place.lstrip("./"))]
    tried.append(os.path.join(start, os.path.basename(base.rstrip("/")), place))
    for folder in map(os.path.normpath, tried):
        inside = _from_root(pictures.root, folder)
        if inside is None:
            continue
        if (pictures.root / inside).is_dir():
            prefix = "" if inside == "." else f"{inside}/"
            if found := [name for name in pictures.files if name.startswith(prefix)]:
                return found
        elif inside.endswith(".txt") and (pictures.root / inside).is_file():
            return _read_list(pictures, inside, losses)
    losses.add(MISSING, f"{file}: {split}: {place}")
    return []


def _from_root(root: Path, path: str) -> str | None:
    """A path from the root; None: it leads out of it."""
    inside = os.path.relpath(path, root) if os.path.isabs(path) else path
    return None if inside.split("/")[0] == ".." else inside


def _read_list(pictures: Pictures, path: str, losses: Losses) -> list[str]:
    found = []
    for line in read_text(pictures.root / path).splitlines():
        if line := line.strip():
            name = pictures.find(line, os.path.dirname(path))
            if name is None:
                losses.add(MISSING, line)
            else:
                found.append(name)
    return found


def _annotate(pictures: Pictures, name: str, names: dict[int, str], losses: Losses, size: Size) -> list[Annotated]:
    head, _, tail = f"/{name}".rpartition("/images/")
    stem = os.path.splitext(f"{head}/labels/{tail}" if tail and f"{head}/images/{tail}" == f"/{name}" else name)[0]
    path = pictures.root / f"{stem.lstrip('/')}.txt"
    shapes = Shapes(size, name, losses)
    if not path.exists():
        losses.add(UNLABELLED, name)
        return []
    for line in read_text(path).splitlines():
        if words := line.split():
            _add_row(shapes, words, names)
    return shapes.objects()


def _add_row(shapes: Shapes, words: list[str], names: dict[int, str]) -> None:
    try:
        number, *values = map(float, words)
        corners = np.array(values)
    except ValueError:
        return shapes.lose(ROWS)
    if len(values) == 4:
        return shapes.lose(BOXES)
    if len(values) < 6 or len(values) % 2:
        return shapes.lose(ROWS)
    if number not in names:
        return shapes.lose(UNKNOWN_CLASS)
    if not ((corners >= -_SLACK) & (corners <= 1 + _SLACK)).all():
        return shapes.lose(BAD)
    pixels = corners.clip(0, 1).reshape(-1, 2) * (shapes.size[1], shapes.size[0])
    return shapes.add(names[int(number)], from_polygon(pixels, shapes.size))
