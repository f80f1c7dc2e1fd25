"""labelme's JSON beside each picture, as https://github.com/wkentaro/labelme writes it.

``shapes`` hold ``label``, ``points`` in pixels, ``shape_type`` and ``group_id``, which joins parts of one object. A
mask is a PNG of the rectangle between its two points. The picture is the file ``imagePath``, or in ``imageData``.
"""

from __future__ import annotations

import base64
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.structures import BadImageError, InputError

from ..files.reading import decode
from .outlines import BAD, NO_AREA, Shapes, box, ellipse, from_bitmap, from_polygon
from .source import (
    BACKGROUNDS,
    EVALUATION,
    REMEDY,
    TRAINING,
    Annotated,
    Entry,
    Losses,
    Pictures,
    Size,
    Source,
    check_size,
    entry_of_file,
    read_json_file,
    read_text,
    walk,
)
from .yolo_seg import MISSING

IGNORE = "__ignore__"
FLAGS = "flags that are set, of shapes and pictures"
BROKEN = "files of annotations that cannot be read"


def read(root: Path, main: Path | None, losses: Losses) -> Source:
    """Read the JSON files of a folder and its subfolders; its folders ``train``, ``val`` and so on are splits.

    Raises:
        InputError: there is no annotation.
    """
    pictures, labels = Pictures(root), set()
    splits: dict[str, list[Entry]] = {}
    for path in [main] if main else walk(root):
        if path.suffix.lower() != ".json":
            continue
        try:
            content = read_json_file(path)
        except BadImageError as error:
            losses.add(BROKEN, str(error))
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            continue
        labels |= {str(shape.get("label")) for shape in content["shapes"] if isinstance(shape, dict)}
        entry = _entry(pictures, path, content, losses)
        first = path.relative_to(root).parts[0]
        split = first if first.lower() in (*TRAINING, *EVALUATION) else "train"
        if entry is not None:
            splits.setdefault(split, []).append(entry)
    if not splits:
        raise InputError(f"{root} has no JSON of labelme whose picture is there; expected NAME.json with shapes.")
    return Source(_order(root, labels - {IGNORE}), splits)


def _order(root: Path, labels: set[str]) -> tuple[str, ...]:
    """The classes in the order of ``labels.txt``, which labelme's commands take, or else of their names."""
    listed = []
    if (root / "labels.txt").is_file():
        listed = read_text(root / "labels.txt").splitlines()
    names = [name.strip() for name in listed if name.strip() and name.strip() != IGNORE]
    used = [name for name in names if name in labels or name not in BACKGROUNDS]
    return tuple(dict.fromkeys([*used, *sorted(labels)]))


def _entry(pictures: Pictures, path: Path, content: dict[str, Any], losses: Losses) -> Entry | None:
    where = path.relative_to(pictures.root).as_posix()
    folder, image = os.path.dirname(where), str(content.get("imagePath") or f"{path.stem}.png")
    annotate = partial(_annotate, path, where, losses)
    found = pictures.find(image, folder) or pictures.beside(os.path.basename(image.replace("\\", "/")), folder)
    found = found or pictures.beside(path.stem, folder)
    if found is not None:
        return entry_of_file(pictures, found, annotate, where)
    if isinstance(content.get("imageData"), str):
        name = os.path.splitext(where)[0] + (os.path.splitext(image)[1] or ".png")
        return Entry(name, where, lambda: _bytes(read_json_file(path)["imageData"], where), annotate)
    losses.add(MISSING, f"{where}: {image}")
    return None


def _bytes(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (TypeError, ValueError) as error:
        raise BadImageError(f"{where} holds what is no base64: {error}. {REMEDY}") from error


def _annotate(path: Path, where: str, losses: Losses, size: Size) -> list[Annotated]:
    content = read_json_file(path)
    check_size(size, (content.get("imageHeight"), content.get("imageWidth")), where)
    shapes = Shapes(size, where, losses)
    flags = [content.get("flags"), *(shape.get("flags") for shape in content["shapes"] if isinstance(shape, dict))]
    losses.add(FLAGS, where, sum(bool(v) for given in flags if isinstance(given, dict) for v in given.values()))
    for shape in content["shapes"]:
        try:
            segmentation = _segmentation(shape, where, size)
            name = None if shape["label"] == IGNORE else str(shape["label"])
        except (KeyError, TypeError, ValueError, OverflowError):  # BadImageError is a ValueError
            shapes.lose(BAD)
            continue
        if segmentation is None:
            shapes.lose(NO_AREA)
        else:
            shapes.add(name, segmentation, shape.get("group_id"))
    return shapes.objects()


def _segmentation(shape: dict[str, Any], where: str, size: Size) -> Any:
    """COCO's segmentation of a shape; None: it has no area."""
    kind, points = shape.get("shape_type") or "polygon", np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
    if kind in ("line", "linestrip", "point", "points"):
        return None
    if kind == "mask":
        left, top = points[0].astype(int).tolist()
        bitmap = np.asarray(decode(_bytes(shape["mask"], where), where, "Mask", REMEDY).convert("L"))
        return from_bitmap(bitmap, left, top, size)
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return from_polygon(ellipse(points[0], (radius, radius)), size)
    if kind == "rectangle" and len(points) == 2:
        return from_polygon(box(*points.min(axis=0), *points.max(axis=0)), size)
    return from_polygon(points, size)
