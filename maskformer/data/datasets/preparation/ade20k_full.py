"""ADE20K of 2021, 847 classes: smaller images and 16-bit labels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np

from ...files.reading import check_same_size, read_picture, read_rgb
from ..registration import read_categories
from .files import Job, pair_files, write_image

SHORT_SIDE = 512  # pixels
IGNORED = 65535


def find_full(folder: Path) -> list[tuple[Path, Path]]:
    """Find the images below a folder, however deep, and the ``_seg.png`` beside each.

    Raises:
        InputError: see ``pair_files``.
    """
    images = {path.stem: path for path in folder.rglob("*.jpg")}
    labels = {path.name.removesuffix("_seg.png"): path for path in folder.rglob("*_seg.png")}
    return pair_files(images, labels, f"labels *_seg.png in {folder}")


def prepare_full(job: Job) -> None:
    """Write one image and its label: sources image and ``_seg.png``, targets JPEG and TIFF."""
    (image_file, label_file), (image_target, label_target) = job.sources, job.targets
    image, colours = np.asarray(read_picture(str(image_file))), read_rgb(str(label_file), "Label")
    check_same_size(image, str(image_file), colours, str(label_file))
    size = limit_short_side(image.shape[1], image.shape[0])
    label_map = decode_classes(colours)
    if size == image.shape[1::-1]:
        write_image(image, image_target)
    else:
        write_image(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), image_target)
        label_map = cv2.resize(label_map, size, interpolation=cv2.INTER_NEAREST)
    write_image(label_map, label_target)


def limit_short_side(width: int, height: int) -> tuple[int, int]:
    """Shrink a size so that its short side is 512 at most; the other one is rounded."""
    scale = min(1.0, SHORT_SIDE / min(width, height))
    return int(width * scale + 0.5), int(height * scale + 0.5)


def decode_classes(colours: np.ndarray) -> np.ndarray:
    """Read the class of each pixel of a ``_seg.png``.

    Args:
        colours: (H,W,3) uint8; the class's id is (red // 10) x 256 + green, 0 is none.

    Returns:
        (H,W) uint16: 0..846, or 65535 for any other class.
    """
    ids = (colours[..., 0] // 10).astype(np.int32) * 256 + colours[..., 1]
    return _class_of_id()[ids]


@cache
def _class_of_id() -> np.ndarray:
    table = np.full(26 * 256, IGNORED, dtype=np.uint16)
    for index, category in enumerate(read_categories("ade20k_full_847.json")):
        table[category["id"]] = index
    return table
