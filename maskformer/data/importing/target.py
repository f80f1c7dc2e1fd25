"""The files of a dataset that training reads: pictures, label maps, COCO's JSON, and the configuration that names them.

A folder holds all that it needs, under relative paths, and may be moved: pictures are hard links where the file system
has them (no room is taken, and removing the source takes nothing away), else copies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
import yaml
from PIL import Image

from maskformer.files import unfinished

CONFIGURATION = "dataset.yaml"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # that DATASETS.OWN looks for
FIRST_ID = 1  # of COCO's categories, images and annotations

Record = dict[str, Any]


def ignore_value(num_classes: int) -> int:
    """The value of pixels without a class in label maps of so many classes."""
    return 255 if num_classes <= 255 else 65535


def plain_name(text: str, default: str = "own") -> str:
    """A name for a dataset, a split or a file: letters, digits, "-" and "_" of a text, others as "_"."""
    return re.sub(r"\W+", "_", text.replace("-", "\0"), flags=re.ASCII).replace("\0", "-").strip("_") or default


def place_picture(source: Path | bytes, target: Path) -> None:
    """Put a picture, a file or its content, into a dataset; folders are created, and an earlier one is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target) as temporary:
        if isinstance(source, bytes):
            temporary.write_bytes(source)
            return
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(os.path.realpath(source), temporary)
            return
        shutil.copyfile(source, temporary)


def write_label_map(path: Path, label_map: np.ndarray) -> None:
    """Write (H,W) uint8 or uint16, or (H,W,3) uint8, as PNG; folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as temporary:
        Image.fromarray(label_map).save(temporary, format="PNG")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or not there."""
    with unfinished(path) as temporary:
        temporary.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


class CocoInstances:
    """The content of a COCO instance JSON, picture by picture.

    Args:
        classes: K names; the ids of the categories are 1..K.
    """

    def __init__(self, classes: Sequence[str]):
        self.content: dict[str, list[Record]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": name} for number, name in enumerate(classes, FIRST_ID)],
        }

    def add_picture(self, file_name: str, size: tuple[int, int]) -> None:
        """The next picture, (height, width), whose objects follow."""
        images = self.content["images"]
        images.append({"id": len(images) + FIRST_ID, "file_name": file_name, "height": size[0], "width": size[1]})

    def add_object(self, class_index: int, segmentation: Any, more: Record | None = None) -> None:
        """An object of the last picture: its class 0..K-1, polygons or compressed RLE, and what else to say of it."""
        image, annotations = self.content["images"][-1], self.content["annotations"]
        encoded = to_rle(segmentation, (image["height"], image["width"]))
        annotations.append(
            {
                "id": len(annotations) + FIRST_ID,
                "image_id": image["id"],
                "category_id": class_index + FIRST_ID,
                "bbox": rle.toBbox(encoded).tolist(),
                "area": int(rle.area(encoded)),
                "iscrowd": 0,
                "segmentation": segmentation,
                **(more or {}),
            }
        )


def to_rle(segmentation: Any, size: tuple[int, int]) -> Record:
    """Polygons or compressed RLE as pycocotools' RLE, whose counts are bytes."""
    if isinstance(segmentation, dict):
        return {"size": list(size), "counts": segmentation["counts"].encode("ascii")}
    return rle.merge(rle.frPyObjects(segmentation, *size))


def write_configuration(folder: Path, name: str, *, base: str, block: Record, more: Record) -> Path:
    """Write ``dataset.yaml``, which ``train_net.py --config-file`` takes.

    Args:
        folder: of the dataset; paths in the block start there.
        name: of the dataset.
        base: the configuration of the model, as an absolute path: the folder may be moved.
        block: of ``DATASETS.OWN``: classes, splits and so on.
        more: other keys, such as ``DATASETS.TRAIN``, as in a configuration file.
    """
    datasets = {"OWN": {name: block}, **more.get("DATASETS", {})}
    content = {"_BASE_": base, **more, "DATASETS": datasets}
    head = "# The folder may be moved; on another machine, _BASE_ has to name the model's configuration there.\n"
    with unfinished(folder / CONFIGURATION) as temporary:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
        temporary.write_text(head + text, encoding="utf-8")
    return folder / CONFIGURATION
