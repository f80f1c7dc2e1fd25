"""Reading images and labels, so that a bad file ends in one sentence that names it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from maskformer.data.counting import present_values
from maskformer.structures import InputError, LabelValues


def read_picture(file_name: str) -> Image.Image:
    """Read a picture, upright as its EXIF orientation says, in Pillow's own form.

    Args:
        file_name: JPEG, PNG or another file that Pillow reads.

    Returns:
        Decoded, of mode RGB.

    Raises:
        InputError: the file is missing, empty, truncated or no image.
    """
    return _read(file_name, "RGB", "Image")


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """Read a picture, upright as its EXIF orientation says.

    Args:
        file_name: JPEG, PNG or another file that Pillow reads.
        image_format: "RGB" or "BGR" (``INPUT.FORMAT``).

    Returns:
        (H,W,3) uint8.

    Raises:
        InputError: the file is missing, empty, truncated or no image.
    """
    pixels = np.asarray(read_picture(file_name))
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def read_label_map(
    file_name: str, num_classes: int, ignore_label: int, label_values: LabelValues | None = None
) -> np.ndarray:
    """Read a semantic label: one integer a pixel.

    Args:
        file_name: one-channel PNG (grey or palette) or TIFF.
        num_classes: K; values 0..K-1 are classes.
        ignore_label: the value of pixels without a class.
        label_values: how the file numbers them, if it does otherwise.

    Returns:
        (H,W) uint8 where every allowed value fits, else int32.

    Raises:
        InputError: the file cannot be read, is not a one-channel integer image, or holds any other value.
    """
    label_map = read_class_map(file_name)
    if label_values is not None:
        _check_values(file_name, label_map, label_values)
        label_map = renumber(label_map, label_values, ignore_label)
    values = present_values(label_map)
    foreign = values[((values < 0) | (values >= num_classes)) & (values != ignore_label)]
    if len(foreign):
        raise InputError(
            f"Label file {file_name} holds the value {foreign[0]}; expected 0..{num_classes - 1} "
            f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES = {num_classes}) or {ignore_label} (ignored): either the labels are not "
            "prepared (datasets/README.md) or NUM_CLASSES belongs to another dataset."
        )
    return label_map.astype(np.uint8 if max(num_classes - 1, ignore_label) <= 255 else np.int32, copy=False)


def renumber(label_map: np.ndarray, label_values: LabelValues, ignore_label: int) -> np.ndarray:
    """Replace the values of a file by 0..K-1 and the ignored ones by ``ignore_label``.

    Args:
        label_map: (H,W) integers.
        label_values: what they mean.
        ignore_label: the value of pixels without a class.

    Returns:
        (H,W) int32; -1 where a value means nothing.
    """
    known = np.array([*label_values.of_classes, *label_values.ignored])
    num_ignored = len(label_values.ignored)
    meanings = np.array([*range(len(label_values.of_classes)), *[ignore_label] * num_ignored], dtype=np.int32)
    order = np.argsort(known)
    position = np.searchsorted(known[order], label_map).clip(max=len(known) - 1)
    return np.where(known[order][position] == label_map, meanings[order][position], np.int32(-1))


def _check_values(file_name: str, label_map: np.ndarray, label_values: LabelValues) -> None:
    foreign = np.setdiff1d(label_map, [*label_values.of_classes, *label_values.ignored])
    if len(foreign):
        first, last = min(label_values.of_classes), max(label_values.of_classes)
        ignored = ", ".join(map(str, label_values.ignored)) or "none"
        raise InputError(
            f"Label file {file_name} holds the value {foreign[0]}; expected those of the "
            f"{len(label_values.of_classes)} classes ({first}..{last}) or an ignored one ({ignored}): correct classes, "
            "offset, ids or ignore of this dataset in DATASETS.OWN."
        )


def read_class_map(file_name: str) -> np.ndarray:
    """Read one integer a pixel, whatever it means.

    Args:
        file_name: one-channel PNG (grey or palette) or TIFF.

    Returns:
        (H,W) of the file's own integer type.

    Raises:
        InputError: the file cannot be read or is not a one-channel integer image.
    """
    label_map = np.asarray(_read(file_name, None, "Label"))
    if label_map.ndim != 2 or label_map.dtype.kind not in "bui":
        raise InputError(
            f"Label file {file_name} holds an array of shape {label_map.shape} and type {label_map.dtype}; expected "
            "one channel of integers, the class of each pixel. datasets/README.md says how labels are prepared."
        )
    return label_map


def read_segment_ids(file_name: str) -> np.ndarray:
    """Read a panoptic PNG, whose segment id is R + 256 G + 65536 B.

    Args:
        file_name: RGB PNG in COCO's panoptic format.

    Returns:
        (H,W) int32; 0 is void.

    Raises:
        InputError: the file cannot be read or is not RGB.
    """
    label = _read(file_name, None, "Panoptic label")
    _check_rgb(label, file_name, "Panoptic label")
    # Pillow's own four bytes of a pixel, the last of them of no meaning, are the number in little-endian order.
    numbers = np.frombuffer(label.tobytes("raw", "RGBX"), dtype="<i4") & 0xFFFFFF
    return numbers.reshape(label.height, label.width)


def read_rgb(file_name: str, kind: str) -> np.ndarray:
    """Read a label whose channels are numbers.

    Args:
        file_name: 8-bit RGB PNG.
        kind: what to call it in a message.

    Returns:
        (H,W,3) uint8.

    Raises:
        InputError: the file cannot be read or is not RGB.
    """
    label = _read(file_name, None, kind)
    _check_rgb(label, file_name, kind)
    return np.asarray(label)


def _check_rgb(label: Image.Image, file_name: str, kind: str) -> None:
    if label.mode != "RGB":
        array = np.asarray(label)
        raise InputError(
            f"{kind} file {file_name} holds an array of shape {array.shape} and type {array.dtype}; expected an 8-bit "
            "RGB image whose colours are numbers. datasets/README.md says how labels are prepared."
        )


def check_declared_size(record: dict[str, Any], image: np.ndarray) -> None:
    """Compare an image with the size that its dataset declares, if it declares one.

    Args:
        record: a dataset's entry for one image, with or without ``height`` and ``width``.
        image: (H,W,3).

    Raises:
        InputError: they differ.
    """
    height, width = image.shape[:2]
    declared = record.get("height", height), record.get("width", width)
    if declared != (height, width):
        raise InputError(
            f"Image file {record['file_name']} is {width} x {height} pixels (width x height) but its annotation says "
            f"{declared[1]} x {declared[0]}; correct width and height in the dataset's JSON or restore the image."
        )


def check_same_size(image: np.ndarray, image_file: str, label_map: np.ndarray, label_file: str) -> None:
    """Compare an image with its label.

    Args:
        image: (H,W,3).
        image_file: what it was read from.
        label_map: (H,W).
        label_file: what it was read from.

    Raises:
        InputError: they differ in height or width.
    """
    if image.shape[:2] != label_map.shape:
        (height, width), (label_height, label_width) = image.shape[:2], label_map.shape
        raise InputError(
            f"Image file {image_file} is {width} x {height} pixels (width x height) but its label {label_file} is "
            f"{label_width} x {label_height}; expected equal sizes: prepare this label again (datasets/README.md)."
        )


def _read(file_name: str, mode: str | None, kind: str) -> Image.Image:
    """Decode a file as Detectron2's ``read_image`` does; ``mode``: convert to it, None: keep the file's own."""
    try:
        with PathManager.open(file_name, "rb") as file:
            decoded = Image.open(file)
            decoded.load()
            image = _turn_upright(decoded)
            return image if mode in (None, image.mode) else image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise InputError(
            f"{kind} file {file_name} cannot be read: {_reason(file_name, error)}; expected a complete image file. "
            "Restore it, or take it out of the dataset that DATASETS.TRAIN or DATASETS.TEST names."
        ) from error


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # Pillow raises whatever its parser of a damaged tag meets; the pixels are good
        return image
    return image


def _reason(file_name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if os.path.isfile(file_name) and os.path.getsize(file_name) == 0:
        return "it is empty (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is no known image format"
    return str(error)
