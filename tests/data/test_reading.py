from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import ExifTags, Image

from maskformer.data.reading import (
    check_declared_size,
    check_same_size,
    read_image,
    read_label_map,
    read_segment_ids,
)
from maskformer.structures import InputError

Write = Callable[[str, Any], str]


def test_image_is_read_in_the_wanted_channel_order(write_png: Write) -> None:
    path = write_png("image.png", [[[1, 2, 3]]])
    assert read_image(path, "RGB").tolist() == [[[1, 2, 3]]]
    assert read_image(path, "BGR").tolist() == [[[3, 2, 1]]]


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
    "Image": lambda path: read_image(path, "RGB"),
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
    with pytest.raises(InputError, match=r"a\.jpg is 3 x 2 pixels .* says 2 x 3"):
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
    np.testing.assert_array_equal(read_image(file_name, "RGB"), detection_utils.read_image(file_name, "RGB"))
