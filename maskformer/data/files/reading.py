"""Reading images and labels, so that a bad file ends in one sentence that names it.

What comes of a picture that is not plain 8-bit RGB:

* An EXIF orientation is applied to every file, image and label alike, each by its own tag. Labels belong to the picture
  as viewers show it, upright; where sizes then differ, the pair is refused with a hint at the tag.
* CMYK, palettes, grey and transparency become RGB as Pillow converts them.
* 16-bit grey is divided by 256, as Pillow does with 16-bit colour; 32-bit and floating-point pictures are refused, for
  their range is not known.
* More pixels than Pillow calls safe are refused before they are decoded; MASKFORMER_MAX_IMAGE_PIXELS allows more.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps

from maskformer.structures import BadImageError, Bands, InputError, LabelValues

from .archives import PREFIX as _OF_ARCHIVE
from .bands import BandsError, read_bands, size_of_bands
from .label_values import decode_colours, decode_values, means_colours

MAX_PIXELS_VARIABLE = "MASKFORMER_MAX_IMAGE_PIXELS"
DEFAULT_MAX_PIXELS = 89_478_485  # where Pillow begins to warn: a quarter of a gibibyte of RGB

_OF_DATASET = "Restore it, or take it out of the dataset that DATASETS.TRAIN or DATASETS.TEST names."


def read_picture(file_name: str, remedy: str = _OF_DATASET, bands: Bands | None = None) -> Image.Image:
    """Read a picture, upright as its EXIF orientation says, in Pillow's own form.

    Args:
        file_name: JPEG, PNG or another file that Pillow reads.
        remedy: the last sentence of a message: what to do with a bad file.
        bands: which channels to take, and what their values mean; None: it is a plain picture.

    Returns:
        Decoded, of mode RGB.

    Raises:
        BadImageError: the file is missing, empty, truncated, too large, no image, or of no known range of values.
    """
    if bands is None:
        return _read(file_name, "Image", remedy, _to_rgb)
    refuse_what_is_no_file(file_name)
    with _named(file_name, "Image", remedy):
        return Image.fromarray(read_bands(file_name, bands, _max_pixels()))


def to_rgb(picture: Image.Image, name: str, remedy: str) -> Image.Image:
    """What ``read_picture`` gives of a picture that Pillow has opened, and which stays as it is.

    Args:
        picture: of any mode.
        name: what to call it in a message.
        remedy: as for ``read_picture``.

    Raises:
        BadImageError: as for ``read_picture``.
    """
    limit = _max_pixels()
    with _named(name, "Image", remedy):
        _check_safe(picture, limit)
        picture.load()
        return _to_rgb(_turn_upright(picture, in_place=False))


def decode(content: bytes, name: str, kind: str, remedy: str) -> Image.Image:
    """Decode an embedded picture, which stays in its own mode and as it lies.

    Args:
        content: of a file.
        name: what to call it in a message.
        kind: likewise, such as "Mask".
        remedy: as for ``read_picture``.

    Raises:
        BadImageError: it is no picture, damaged, or too large.
    """
    limit = _max_pixels()
    with _named(name, kind, remedy):
        picture = Image.open(io.BytesIO(content))
        _check_safe(picture, limit)
        picture.load()
        return picture


def refuse_what_is_no_file(path: str) -> None:
    """Refuse a folder, and what could keep a reader waiting for ever: a FIFO, a socket, a device.

    What is not there, or an address that ``PathManager`` knows, is left to whoever opens it.

    Raises:
        BadImageError: it is one of these.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise BadImageError(f"{path} cannot be read: it is a {kind}; expected a file. Leave it out, or restore it.")


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
        BadImageError: the file cannot be read, is not a one-channel integer image, or holds any other value.
    """
    if label_values is None:
        label_map = read_class_map(file_name)
    else:
        image = _read(file_name, "Label")
        if means_colours(image, label_values):
            label_map = decode_colours(_colour_numbers(image.convert("RGB")), label_values, ignore_label, file_name)
        else:
            label_map = decode_values(_check_one_channel(image, file_name), label_values, ignore_label, file_name)
    values = present_values(label_map)
    foreign = values[((values < 0) | (values >= num_classes)) & (values != ignore_label)]
    if len(foreign):
        raise BadImageError(
            f"Label file {file_name} holds the value {foreign[0]}; expected 0..{num_classes - 1} "
            f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES = {num_classes}) or {ignore_label} (ignored): either the labels are not "
            "prepared (datasets/README.md) or NUM_CLASSES belongs to another dataset."
        )
    return label_map.astype(np.uint8 if max(num_classes - 1, ignore_label) <= 255 else np.int32, copy=False)


def present_values(integer_map: np.ndarray) -> np.ndarray:
    """The distinct values of a map (H,W) of integers, ascending."""
    values = integer_map.ravel()  # only those where the map changes are sorted, for neighbours mostly agree
    changes = np.flatnonzero(values[1:] != values[:-1])
    return np.unique(np.append(values[changes], values[-1:]))


def read_class_map(file_name: str, *, from_grey: bool = False) -> np.ndarray:
    """Read one integer a pixel of a one-channel PNG (grey or palette) or TIFF: (H,W) of the file's own type.

    Args:
        file_name: of the label.
        from_grey: three channels that are equal, and transparency, are one channel too.

    Raises:
        BadImageError: the file cannot be read or is not a one-channel integer image.
    """
    image = _read(file_name, "Label")
    if from_grey and image.mode in ("RGB", "RGBA", "LA"):
        red, *others = image.convert("RGB").split()
        image = red if all(other.tobytes() == red.tobytes() for other in others) else image
    return _check_one_channel(image, file_name)


def _check_one_channel(image: Image.Image, file_name: str) -> np.ndarray:
    label_map = np.asarray(image)
    if label_map.ndim != 2 or label_map.dtype.kind not in "bui":
        raise BadImageError(
            f"Label file {file_name} holds an array of shape {label_map.shape} and type {label_map.dtype}; expected "
            "one channel of integers, the class of each pixel. datasets/README.md says how labels are prepared; where "
            "labels are colours, colors in DATASETS.OWN gives the colour of each class."
        )
    return label_map


def read_segment_ids(file_name: str) -> np.ndarray:
    """Read a panoptic PNG of COCO, whose segment id is R + 256 G + 65536 B: (H,W) int32; 0 is void.

    Raises:
        BadImageError: the file cannot be read or is not RGB.
    """
    return _colour_numbers(_read_colours(file_name, "Panoptic label"))


def _colour_numbers(label: Image.Image) -> np.ndarray:
    """R + 256 G + 65536 B of each pixel: (H,W) int32."""
    # Pillow's own four bytes of a pixel, the last of them of no meaning, are the number in little-endian order.
    numbers = np.frombuffer(label.tobytes("raw", "RGBX"), dtype="<i4") & 0xFFFFFF
    return numbers.reshape(label.height, label.width)


def read_rgb(file_name: str, kind: str) -> np.ndarray:
    """Read a label whose channels are numbers: (H,W,3) uint8; ``kind`` calls it in a message.

    Raises:
        BadImageError: the file cannot be read or is not RGB.
    """
    return np.asarray(_read_colours(file_name, kind))


def _read_colours(file_name: str, kind: str) -> Image.Image:
    label = _read(file_name, kind)
    if label.mode != "RGB":
        array = np.asarray(label)
        raise BadImageError(
            f"{kind} file {file_name} holds an array of shape {array.shape} and type {array.dtype}; expected an 8-bit "
            "RGB image whose colours are numbers. datasets/README.md says how labels are prepared."
        )
    return label


class Shaped(Protocol):
    """An array, or anything else with the shape (height, width, ...)."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102


def check_declared_size(record: dict[str, Any], image: Shaped) -> None:
    """Compare an image with the ``height`` and ``width`` that its dataset's entry declares, if it declares them.

    Raises:
        BadImageError: they differ.
    """
    height, width = image.shape[:2]
    declared = record.get("height", height), record.get("width", width)
    remedy = "correct width and height in the dataset's JSON or restore the image"
    _check_sizes(record["file_name"], (height, width), "its annotation says that it", declared, remedy)


def check_same_size(image: Shaped, image_file: str, label_map: Shaped, label_file: str) -> None:
    """Compare an image with its label, each (H,W,...) and with the file that it was read from.

    Raises:
        BadImageError: they differ in height or width.
    """
    remedy = "prepare this label again (datasets/README.md)"
    _check_sizes(image_file, image.shape[:2], f"its label {label_file}", label_map.shape[:2], remedy, label_file)


def _check_sizes(
    file: str, size: tuple[int, ...], other: str, other_size: tuple[int, ...], remedy: str, label_file: str = ""
) -> None:
    if size != other_size:
        raise BadImageError(
            f"Image file {file} is {size[1]} x {size[0]} pixels (width x height) but {other} is {other_size[1]} x "
            f"{other_size[0]}; expected equal sizes: {remedy}."
            f"{_hint_at_orientation(file)}{_hint_at_orientation(label_file)}"
        )


def _hint_at_orientation(file_name: str) -> str:
    """Of a file whose size surprised: what its EXIF tag did, as a further sentence."""
    try:
        with Image.open(file_name) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            width, height = image.size
    except Exception:  # the file has been read before, so this is a matter of the hint alone
        return ""
    if orientation == 1:
        return ""
    return (
        f" {file_name} is stored as {width} x {height} with the EXIF orientation {orientation}, by which it was turned "
        "upright: if the other file fits the stored pixels, remove the tag."
    )


def _read(
    file_name: str, kind: str, remedy: str = _OF_DATASET, convert: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """Decode a file, upright; ``convert`` it or, without that, keep the file's own mode."""
    limit = _max_pixels()
    refuse_what_is_no_file(file_name)
    with _named(file_name, kind, remedy), PathManager.open(file_name, "rb") as file:
        decoded = Image.open(file)
        _check_safe(decoded, limit)
        decoded.load()
        image = _turn_upright(decoded)
        return image if convert is None else convert(image)


@contextmanager
def _named(file_name: str, kind: str, remedy: str) -> Iterator[None]:
    """Turn what decoding raises into one sentence about a file."""
    try:
        yield
    except InputError:
        raise
    except (_UnusableError, BandsError, Image.DecompressionBombError) as error:
        is_bomb = isinstance(error, Image.DecompressionBombError)
        reason = _too_large(f"{error}".partition(" exceeds")[0].lower()) if is_bomb else error
        raise BadImageError(f"{kind} file {file_name} cannot be used: {reason}.") from error
    except Exception as error:  # Pillow raises whatever its parsers of damaged files meet
        raise BadImageError(
            f"{kind} file {file_name} cannot be read: {_reason(file_name, error)}; expected a complete image file. "
            f"{remedy}"
        ) from error


class _UnusableError(Exception):
    """What is wrong with an image that could be opened."""


def picture_size(file_name: str, bands: Bands | None = None) -> tuple[int, int]:
    """The (height, width) of a picture as ``read_picture`` gives it, from the head of its file.

    Raises:
        BadImageError: it cannot be read.
    """
    if bands is not None:
        with _named(file_name, "Image", _OF_DATASET):
            return size_of_bands(file_name)
    with _named(file_name, "Image", _OF_DATASET), PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        is_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return image.size if is_turned else image.size[::-1]


def _max_pixels() -> int:
    """The most pixels an image may have; Pillow, which has a limit of its own, is told a higher one."""
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if text is None:
        return DEFAULT_MAX_PIXELS
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 19):
        raise InputError(f"The environment variable {MAX_PIXELS_VARIABLE} is {text!r}; expected a number of pixels.")
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(text))
    return int(text)


def _check_safe(image: Image.Image, limit: int) -> None:
    if image.width * image.height > limit:
        raise _UnusableError(_too_large(f"{image.width} x {image.height} pixels, {limit} in all are allowed"))
    if image.format == "EPS":
        raise _UnusableError("it is an EPS file, which only Ghostscript can draw, and no file here runs a program")


def _too_large(facts: str) -> str:
    return (
        f"it is too large ({facts}, for a small file could fill the memory): make it smaller or raise the environment "
        f"variable {MAX_PIXELS_VARIABLE}"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    # Older versions of Pillow read 16-bit PNG as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
        values = np.asarray(image)
        if 0 < values.max(initial=0) < 256:
            raise _UnusableError("it is a 16-bit image whose values end at 255, black if divided by 256: save 8 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise _UnusableError(f"its pixels are 32-bit numbers (mode {image.mode}) of no known range: save 8 or 16 bits")
    return image.convert("RGB")


def _turn_upright(image: Image.Image, in_place: bool = True) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image, in_place=in_place) or image  # type: ignore[call-overload]
    except Exception:  # Pillow raises whatever its parser of a damaged tag meets; the pixels are good
        return image


def _reason(file_name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and file_name.startswith(_OF_ARCHIVE) and error.strerror:
        return error.strerror
    if os.path.isfile(file_name) and os.path.getsize(file_name) == 0:
        return "it is empty (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is no known image format"
    return str(error).partition("\n")[0] or type(error).__name__
