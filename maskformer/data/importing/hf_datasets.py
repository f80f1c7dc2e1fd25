"""Hugging Face datasets on the disk, read by the library ``datasets`` (https://huggingface.co/docs/datasets).

A folder of ``save_to_disk``, Parquet or Arrow files, or an image folder with ``metadata``. Columns are found by their
features: two of pictures, of which one holds masks (semantic), or one and a list of objects with ``segmentation``
(instances), each of polygons or of COCO's run lengths. Names of classes come from ``ClassLabel``, or for masks from
``id2label.json`` beside the data.
"""

from __future__ import annotations

import glob
import importlib
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle

from maskformer.structures import BadImageError, InputError

from ..files.masks import find_rle_fault
from ..files.reading import decode
from .outlines import BAD, Shapes, from_polygon
from .source import (
    EVALUATION,
    REMEDY,
    TRAINING,
    Annotated,
    Entry,
    Losses,
    Size,
    Source,
    check_size,
    read_json_file,
    walk,
)
from .yolo_seg import BOXES

_SPLITS = (*TRAINING, *EVALUATION)
_MASK_WORDS = ("mask", "label", "annotation", "seg", "target")
_CLASS_KEYS = ("category", "categories", "category_id", "label", "labels", "class", "class_id")
_MASK_KEYS = ("segmentation", "segmentations", "polygon", "polygons", "mask", "masks", "rle")
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}


def read(root: Path, main: Path | None, losses: Losses) -> Source:
    """Read a dataset; its splits stay.

    Raises:
        InputError: ``datasets`` is missing, or does not know the folder, or no column fits.
    """
    cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # Parquet is read from a copy in Arrow's form
    splits = _load(root, main, cache)
    features = next(iter(splits.values())).features
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    objects = next((name for name in features if _fields(features[name])), None)
    masks = [name for name in images if any(word in name.lower() for word in _MASK_WORDS)]
    mask = masks[0] if len(images) > 1 and masks else images[1] if len(images) > 1 else None
    image = next((name for name in images if name != mask), None)
    if image is None or (mask is None and objects is None):
        raise InputError(
            f"{main or root} has the columns {', '.join(f'{n} ({type(f).__name__})' for n, f in features.items())}; "
            "expected two of the type Image, or one and a list of objects with segmentation."
        )
    if mask is not None:
        names = _read_id2label(root)
        entries = _entries(splits, image, root, lambda rows, i: partial(_label_map, rows, i, mask, root))
        return Source(tuple(names.values()), entries, form="labels", has_label_maps=True, ids=tuple(names), keep=cache)
    assert objects is not None
    key, of_class = _class_names(features[objects])
    found = sorted({str(n) for rows in splits.values() for row in rows.select_columns([objects])
                    for n in _columns(row[objects]).get(key, [])}) if of_class is None else of_class  # fmt: skip
    read_objects = partial(_objects, column=objects, key=key, of_class=of_class, losses=losses)
    entries = _entries(splits, image, root, lambda rows, i: partial(read_objects, rows, i))
    return Source(tuple(found), entries, keep=cache)


def _load(root: Path, main: Path | None, cache: tempfile.TemporaryDirectory[str]) -> dict[str, Any]:
    """The splits, with pictures as bytes or paths, not decoded."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise InputError("hf-datasets needs the library datasets: pip install datasets.") from error
    datasets.disable_progress_bars()
    try:
        if main is None and ((root / "state.json").is_file() or (root / "dataset_dict.json").is_file()):
            loaded = datasets.load_from_disk(str(root))
        else:  # not by load_dataset, which tells Hugging Face's servers
            kind, files = _find_files(root, main)
            module = importlib.import_module(f"datasets.packaged_modules.{kind.lower()}.{kind.lower()}")
            builder = getattr(module, kind)(cache_dir=cache.name, data_files=files)
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    except Exception as error:  # pyarrow's, and whatever a script of the library meets
        raise InputError(f"{main or root} cannot be read by datasets: {str(error).splitlines()[0]}.") from error
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    for name, rows in splits.items():
        for column, feature in rows.features.items():
            if type(feature).__name__ == "Image":
                rows = rows.cast_column(column, datasets.Image(decode=False))
        splits[name] = rows
    return splits


def _find_files(root: Path, main: Path | None) -> tuple[str, dict[str, list[str]]]:
    """The class of ``datasets`` that reads the files, and those of each split, of which their names tell."""
    for kind in ("Parquet", "Arrow"):
        files: dict[str, list[str]] = {}
        for path in [main] if main else walk(root):
            if path.suffix == f".{kind.lower()}":
                words = re.split(r"[\W_]+", path.relative_to(root).as_posix().lower())
                split = next((word for word in reversed(words) if word in _SPLITS), "train")
                files.setdefault(split, []).append(glob.escape(str(path)))
        if files:
            return kind, files
    folders = [path for path in root.iterdir() if path.is_dir() and path.name.lower() in _SPLITS]
    named = {path.name.lower(): [f"{glob.escape(str(path))}/**"] for path in folders}
    return "ImageFolder", named or {"train": [f"{glob.escape(str(root))}/**"]}


def _fields(feature: Any) -> dict[str, Any]:
    """The features of objects' parts, where a column holds lists of objects, or objects of lists."""
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    inner = dict(inner) if isinstance(inner, dict) else {}
    is_list = inner is not feature or all(hasattr(part, "feature") or isinstance(part, list) for part in inner.values())
    return inner if is_list and ({"bbox", *_MASK_KEYS} & inner.keys()) else {}


def _class_names(feature: Any) -> tuple[str, tuple[str, ...] | None]:
    """The key that gives an object's class, and the names if the class is a number."""
    fields = _fields(feature)
    key = next((key for key in _CLASS_KEYS if key in fields), "")
    part = fields.get(key)
    names = getattr(getattr(part, "feature", part[0] if isinstance(part, list) and part else part), "names", None)
    return key, tuple(names) if names else None


def _entries(splits: dict[str, Any], image: str, root: Path, annotate: Any) -> dict[str, list[Entry]]:
    found = {}
    for split, rows in splits.items():
        digits = max(len(str(len(rows))), 4)
        found[split] = [
            Entry(
                f"{index:0{digits}d}{_suffix(rows, index, image)}",
                f"{split}, row {index}",
                partial(_content, rows, index, image, root),
                annotate(rows, index),
            )
            for index in range(len(rows))
        ]
    return found


def _suffix(rows: Any, index: int, column: str) -> str:
    cell = rows[index][column]
    suffix = os.path.splitext(str((cell or {}).get("path") or ""))[1].lower()
    return suffix if suffix in (*_SUFFIXES.values(), ".jpeg", ".tiff") else ".png"


def _content(rows: Any, index: int, column: str, root: Path) -> Path | bytes:
    cell = rows[index][column] or {}
    if cell.get("bytes"):
        return cell["bytes"]
    path = os.path.realpath(cell.get("path") or "")
    if not path.startswith(os.path.realpath(root) + os.sep):
        raise BadImageError(
            f"Row {index} has as {column} neither content nor a file in {root}, but {cell.get('path')!r}. {REMEDY}"
        )
    return Path(path)


def _label_map(rows: Any, index: int, column: str, root: Path, size: Size) -> np.ndarray:
    content, where = _content(rows, index, column, root), f"Row {index}, {column}"
    content = content.read_bytes() if isinstance(content, Path) else content
    label_map = np.asarray(decode(content, where, "Label", REMEDY))
    if label_map.ndim == 3 and (label_map == label_map[:, :, :1]).all():
        label_map = label_map[:, :, 0]
    if (
        label_map.ndim != 2
        or label_map.dtype.kind not in "bui"
        or label_map.min(initial=0) < 0
        or (label_map.max(initial=0) > 65535)
    ):
        raise BadImageError(
            f"{where} has the shape {label_map.shape} and the type {label_map.dtype}; expected one number of a class a "
            "pixel. Labels that are colours: save them as files, and name the colors in DATASETS.OWN."
        )
    check_size(size, label_map.shape, where)
    return label_map


def _read_id2label(root: Path) -> dict[int, str]:
    if not (root / "id2label.json").is_file():
        return {}
    content = read_json_file(root / "id2label.json")
    try:
        names = {int(value): str(name) for value, name in content.items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f"{root / 'id2label.json'} is no table of numbers and names; correct it.") from error
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {value: f"{name} ({value})" if name in twice else name for value, name in sorted(names.items())}


def _columns(cell: Any) -> dict[str, list[Any]]:
    """Objects, a list of them or an object of lists, as an object of lists."""
    if isinstance(cell, list):
        return {key: [each.get(key) for each in cell] for key in (cell[0] if cell else {})}
    return cell or {}


def _objects(
    rows: Any, index: int, size: Size, *, column: str, key: str, of_class: tuple[str, ...] | None, losses: Losses
) -> list[Annotated]:
    columns, shapes = _columns(rows[index][column]), Shapes(size, f"row {index}", losses)
    masks = next((columns[name] for name in _MASK_KEYS if name in columns), None)
    numbers = columns.get(key) or []
    if masks is None:
        losses.add(BOXES, shapes.where, len(columns.get("bbox") or []))
        return []
    for position, mask in enumerate(masks):
        try:
            name = str(numbers[position]) if of_class is None else of_class[numbers[position]]
            shapes.add(name, _segmentation(mask, size))
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
            shapes.lose(BAD)
    return shapes.objects()


def _segmentation(mask: Any, size: Size) -> Any:
    if isinstance(mask, dict):
        counts = mask["counts"]
        found = {"size": list(mask["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
        if find_rle_fault(found, size):
            raise ValueError("run lengths")
        if isinstance(found["counts"], list):
            found["counts"] = rle.frPyObjects(found, *size)["counts"].decode("ascii")
        return found
    polygons = mask if isinstance(mask[0], list) else [mask]
    return [ring for polygon in polygons for ring in from_polygon(polygon, size)]
