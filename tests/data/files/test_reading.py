from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import ExifTags, Image

from maskformer.data.files.reading import (
    MAX_PIXELS_VARIABLE,
    check_declared_size,
    check_same_size,
    read_label_map,
    read_picture,
    read_segment_ids,
)
from maskformer.structures import BadImageError, InputError

Write = Callable[[str, Any], str]


def read_image(path: str) -> np.ndarray:
    return np.asarray(read_picture(path))


def test_image_is_read_as_red_green_and_blue(write_png: Write) -> None:
    path = write_png("image.png", [[[1, 2, 3]]])
    assert read_image(path).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("read", [read_segment_ids, lambda path: read_label_map(path, 3, 255)])
def test_a_fifo_among_a_datasets_files_does_not_hang(tmp_path: Path, read: Callable[[str], Any]) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadImageError, match=r"a\.png .* is a FIFO"):
        read(str(tmp_path / "a.png"))


def test_segment_id_is_red_plus_256_green_plus_65536_blue(write_png: Write) -> None:
    path = write_png("ids.png", [[[1, 2, 3], [0, 0, 0]], [[255, 255, 255], [9, 0, 0]]])
    assert read_segment_ids(path).tolist() == [[1 + 2 * 256 + 3 * 65536, 0], [256**3 - 1, 9]]


def test_palette_label_is_read_as_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 2], [255, 1]], np.uint8))
    image.putpalette([7] * 768)
    image.save(tmp_path / "label.png")
    assert read_label_map(str(tmp_path / "label.png"), 3, 255).tolist() == [[0, 2], [255, 1]]


def test_label_has_the_smallest_type_that_holds_every_allowed_value(tmp_path: Path, write_png: Write) -> None:
    small = write_png("label.png", [[0, 1]])
    assert read_label_map(small, 150, 255).dtype == np.uint8
    assert read_label_map(small, 847, 65535).dtype == np.int32
    Image.fromarray(np.array([[846, 65535]], np.uint16)).save(tmp_path / "wide.tif")
    wide = read_label_map(str(tmp_path / "wide.tif"), 847, 65535)
    assert wide.tolist() == [[846, 65535]] and wide.dtype == np.int32


def test_label_value_outside_the_classes_is_named_with_what_is_allowed(write_png: Write) -> None:
    path = write_png("label.png", [[0, 3], [255, 2]])
    with pytest.raises(InputError) as error:
        read_label_map(path, 3, 255)
    for part in (path, "the value 3", "0..2", "MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3", "255 (ignored)", "not prepared"):
        assert part in str(error.value)


def test_wide_label_value_outside_the_classes_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.array([[846, 900]], np.uint16)).save(tmp_path / "wide.tif")
    with pytest.raises(InputError, match=r"the value 900; expected 0\.\.846"):
        read_label_map(str(tmp_path / "wide.tif"), 847, 65535)


def test_label_with_three_channels_is_refused(write_png: Write) -> None:
    path = write_png("label.png", np.zeros((2, 2, 3)))
    with pytest.raises(InputError, match=r"label\.png.*\(2, 2, 3\).*expected one channel"):
        read_label_map(path, 3, 255)


def test_panoptic_label_with_one_channel_is_refused(write_png: Write) -> None:
    path = write_png("ids.png", np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"ids\.png.*expected an 8-bit RGB image"):
        read_segment_ids(path)


READERS = {
    "Image": lambda path: read_image(path),
    "Label": lambda path: read_label_map(path, 3, 255),
    "Panoptic label": read_segment_ids,
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_bad_file_ends_in_one_sentence_that_names_it(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    complete = path.read_bytes()
    contents = {
        "it is empty": b"",
        "no known image format": b"not an image at all",
        "[Tt]runcated": complete[: len(complete) // 2],
    }
    for reason, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"^{kind} file .*file\.{suffix} cannot be read: .*{reason}.*DATASETS"):
            READERS[kind](str(path))


@pytest.mark.parametrize("kind", READERS)
def test_missing_file_and_folder_are_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.png cannot be read: it does not exist"):
        READERS[kind](str(tmp_path / "absent.png"))
    with pytest.raises(InputError, match="cannot be read"):
        READERS[kind](str(tmp_path))


def test_image_of_another_size_than_declared_is_named_with_both_sizes() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    check_declared_size({"file_name": "a.jpg"}, image)
    check_declared_size({"file_name": "a.jpg", "height": 2, "width": 3}, image)
    with pytest.raises(InputError, match=r"a\.jpg is 3 x 2 pixels .* its annotation says .* 2 x 3"):
        check_declared_size({"file_name": "a.jpg", "height": 3, "width": 2}, image)


def test_label_of_another_size_is_named_with_both_sizes() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    check_same_size(image, "a.jpg", np.zeros((2, 3)), "a.png")
    with pytest.raises(InputError, match=r"a\.jpg is 3 x 2 pixels .* a\.png is 3 x 4"):
        check_same_size(image, "a.jpg", np.zeros((4, 3)), "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 have a meaning
def test_pictures_are_turned_upright_as_detectron2_turns_them(tmp_path: Path, orientation: int, suffix: str):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file_name = str(tmp_path / f"turned.{suffix}")
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file_name, exif=exif)
    np.testing.assert_array_equal(read_image(file_name), detection_utils.read_image(file_name, "RGB"))


@pytest.mark.parametrize("kind", READERS)
def test_what_one_file_does_wrong_can_be_skipped(kind: str, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(BadImageError):
        READERS[kind](str(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["bild é 漢字 🐈.png", "x" * 300 + ".png", "\ud800.png", "a\0b.png"])
def test_unusual_and_impossible_paths(tmp_path: Path, name: str):
    path = str(tmp_path / name)
    if len(name) < 100 and name.isprintable():
        Image.new("RGB", (3, 2)).save(path)
        assert read_image(path).shape == (2, 3, 3)
    else:
        with pytest.raises(BadImageError, match=r"^Image file .* cannot be read: "):
            read_image(path)


def test_cmyk_palette_grey_and_transparency_become_rgb(tmp_path: Path):
    for mode, colour in (("CMYK", (0, 0, 0, 0)), ("L", 255), ("LA", (255, 9)), ("RGBA", (255, 255, 255, 9)), ("1", 1)):
        path = tmp_path / f"{mode}.tif"
        Image.new(mode, (3, 2), colour).save(path)
        assert (read_image(str(path)) == 255).all(), mode
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 1, 2, 3])
    palette.save(tmp_path / "p.png")
    assert read_image(str(tmp_path / "p.png"))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_divided_by_256(tmp_path: Path, suffix: str):
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / f"a.{suffix}")
    assert read_image(str(tmp_path / f"a.{suffix}"))[0].tolist() == [[0] * 3, [1] * 3, [255] * 3]


def test_16_bit_picture_that_would_be_black_is_refused(tmp_path: Path):
    Image.fromarray(np.array([[0, 255]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(BadImageError, match=r"a\.png cannot be used: .*values end at 255.*save 8 bits\.$"):
        read_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_picture_of_no_known_range_is_refused(tmp_path: Path, dtype: type):
    Image.fromarray(np.zeros((2, 2), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(BadImageError, match="no known range: save 8 or 16 bits"):
        read_image(str(tmp_path / "a.tif"))


def write_huge(path: Path, width: int, height: int) -> str:
    """A PNG that says it is huge and holds one row's beginning."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"\0"),
        b"IEND": b"",
    }
    data = [len(c).to_bytes(4, "big") + n + c + zlib.crc32(n + c).to_bytes(4, "big") for n, c in chunks.items()]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))
    return str(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])  # Pillow warns of the first, refuses the second
def test_absurdly_large_image_is_refused_with_the_variable_to_change(tmp_path: Path, size: tuple[int, int]):
    with pytest.raises(BadImageError, match=rf"cannot be used: it is too large .*raise .*{MAX_PIXELS_VARIABLE}\.$"):
        read_image(write_huge(tmp_path / "a.png", *size))


@pytest.mark.parametrize("size", [(2048, 2731), (6000, 8000)])
def test_sizes_of_mapillary_pass_the_limit(tmp_path: Path, size: tuple[int, int]):
    with pytest.raises(BadImageError, match="truncated"):
        read_image(write_huge(tmp_path / "a.png", *size))


def test_limit_of_pixels_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # restored afterwards
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "30")
    assert read_image(str(tmp_path / "a.png")).shape == (5, 6, 3)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "29")
    with pytest.raises(BadImageError, match="6 x 5 pixels, 29 in all are allowed"):
        read_image(str(tmp_path / "a.png"))
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "many")
    with pytest.raises(InputError, match=f"{MAX_PIXELS_VARIABLE} is 'many'"):
        read_image(str(tmp_path / "a.png"))


def test_label_that_fits_the_stored_pixels_of_a_turned_image_is_refused_with_the_reason(tmp_path: Path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image_file, label_file = str(tmp_path / "a.jpg"), str(tmp_path / "a.png")
    Image.new("RGB", (12, 8)).save(image_file, exif=exif)
    Image.new("L", (12, 8)).save(label_file)
    image, stored = read_image(image_file), read_label_map(label_file, 3, 255)
    message = r"stored as 12 x 8 with the EXIF orientation 6, .*remove the tag"
    with pytest.raises(BadImageError, match=message):
        check_same_size(image, image_file, stored, label_file)
    with pytest.raises(BadImageError, match=message):
        check_declared_size({"file_name": image_file, "height": 8, "width": 12}, image)
    check_same_size(image, image_file, stored.T, label_file)
    Image.new("L", (12, 8)).save(label_file, exif=exif)  # a label with the same tag is turned alike
    check_same_size(image, image_file, read_label_map(label_file, 3, 255), label_file)
