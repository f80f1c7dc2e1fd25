"""Supervisely's project format, of https://docs.supervisely.com/customization-and-integration/00_ann_format_navi.

``meta.json`` names the classes. Each folder with ``ann`` and ``img`` is a dataset, and becomes a split: of
``img/NAME.jpg``, the annotation is ``ann/NAME.jpg.json``. Datasets in datasets (``datasets/``) are found too. A bitmap
is a PNG, compressed by zlib, in base64, with the place of its upper left pixel; of one with transparency, alpha is the
mask. Rectangles name the pixels in their corners, which they include.
"""

from __future__ import annotations

import base64
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskformer.structures import BadImageError, InputError

from ..files.reading import decode
from .outlines import BAD, NO_AREA, Shapes, box, from_bitmap, from_polygon
from .source import REMEDY, Annotated, Entry, Losses, Pictures, Size, Source, check_size, entry_of_file, read_json_file
from .yolo_seg import MISSING

TAGS = "tags of pictures and objects"
OTHER = "cuboids, graphs and other shapes"
UNANNOTATED = "pictures without an annotation, taken to be empty"
_MOST_BYTES = 2**26  # of the PNG of one object


def read(root: Path, main: Path | None, losses: Losses) -> Source:
    """Read a project.

    Raises:
        InputError: it has no ``meta.json``, no class or no picture.
    """
    meta = read_json_file(main or root / "meta.json")
    listed = meta.get("classes") if isinstance(meta, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) and each.get("title") for each in listed):
        raise InputError(f"{main or root / 'meta.json'} names no classes; expected a project of Supervisely.")
    pictures = Pictures(root)
    splits: dict[str, list[Entry]] = {}
    for name, path in pictures.files.items():
        if path.parent.name == "img":
            dataset = path.parent.parent
            split = "_".join(part for part in dataset.relative_to(root).parts if part != "datasets") or "train"
            entry = entry_of_file(pictures, name, partial(_annotate, path, name, losses))
            splits.setdefault(split, []).append(entry)
    for annotation in root.rglob("ann/*.json"):
        if not (annotation.parents[1] / "img" / annotation.stem).is_file():
            losses.add(MISSING, annotation.relative_to(root).as_posix())
    if not splits:
        raise InputError(f"{root} has no picture in DATASET/img; export the project with its images.")
    return Source(tuple(str(each["title"]) for each in listed), splits)


def _annotate(path: Path, where: str, losses: Losses, size: Size) -> list[Annotated]:
    file = path.parents[1] / "ann" / f"{path.name}.json"
    if not file.is_file():
        losses.add(UNANNOTATED, where)
        return []
    content = read_json_file(file)
    objects = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(objects, list):
        raise BadImageError(f"{file} has no objects; expected an annotation of Supervisely. {REMEDY}")
    declared = content.get("size") if isinstance(content.get("size"), dict) else {}
    check_size(size, (declared.get("height"), declared.get("width")), where)
    shapes = Shapes(size, where, losses)
    for tags in [content.get("tags"), *(each.get("tags") for each in objects if isinstance(each, dict))]:
        losses.add(TAGS, where, len(tags) if isinstance(tags, list) else 0)
    for each in objects:
        try:
            _add(shapes, each, where)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, zlib.error):
            shapes.lose(BAD)
    return shapes.objects()


def _add(shapes: Shapes, each: dict[str, Any], where: str) -> None:
    kind, name = each.get("geometryType", "polygon"), str(each["classTitle"])
    if kind in ("bitmap", "alpha_mask"):
        left, top = map(int, each["bitmap"]["origin"])
        return shapes.add(name, from_bitmap(_read_bitmap(each["bitmap"]["data"], where), left, top, shapes.size))
    if kind in ("line", "polyline", "point"):
        return shapes.lose(NO_AREA)
    if kind not in ("polygon", "rectangle"):
        return shapes.lose(OTHER)
    exterior = np.asarray(each["points"]["exterior"], dtype=np.float64).reshape(-1, 2)
    if kind == "rectangle":
        return shapes.add(name, from_polygon(box(*exterior.min(axis=0), *(exterior.max(axis=0) + 1)), shapes.size))
    return shapes.add(name, from_polygon(exterior, shapes.size, each["points"].get("interior") or ()))


def _read_bitmap(text: str, where: str) -> np.ndarray:
    inflating = zlib.decompressobj()
    content = inflating.decompress(base64.b64decode(text), _MOST_BYTES)
    if inflating.unconsumed_tail:
        raise ValueError("a bitmap that is too large")
    picture: Image.Image = decode(content, where, "Mask", REMEDY)
    has_alpha = "A" in picture.mode or "transparency" in picture.info
    return np.asarray(picture.convert("RGBA"))[:, :, 3] if has_alpha else np.asarray(picture.convert("L"))
