from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from maskformer.data.transforms.lazy import Picture
from maskformer.data.transforms.resampling import Window, resize_map

pytestmark = pytest.mark.usefixtures("way")


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def crop(picture: Image.Image, window: Window) -> np.ndarray:
    right, bottom = window.left + window.width, window.top + window.height
    return np.asarray(picture.crop((window.left, window.top, right, bottom))).astype(int)


def assert_is_resized(
    actual: np.ndarray, picture: Image.Image, new_size: tuple[int, int], window: Window, resample: int = Image.BILINEAR
) -> None:
    assert actual.dtype == np.uint8
    assert np.array_equal(actual, crop(picture.resize(new_size[::-1], resample), window))


def resize_picture(
    picture: Image.Image | np.ndarray, new_size: tuple[int, int], window: Window, resample: int = Image.BILINEAR
) -> np.ndarray:
    moved = Picture(picture)
    moved.transform(T.ResizeTransform(*moved.size, *new_size, resample))
    moved.transform(T.CropTransform(window.left, window.top, window.width, window.height))
    return moved.array


def draw_window(rng: np.random.Generator, size: tuple[int, int]) -> Window:
    height, width = (int(rng.integers(1, edge + 1)) for edge in size)
    return Window(int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1)), height, width)


@pytest.mark.parametrize("is_array", [False, True])
def test_random_windows_equal_resize_then_crop(is_array: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        picture = noise(*rng.integers(1, 120, 2).tolist())
        new_size = tuple(rng.integers(1, 240, 2).tolist())
        window = draw_window(rng, new_size)
        given = np.asarray(picture) if is_array else picture
        for each in (window, Window(0, 0, *new_size)):
            assert_is_resized(resize_picture(given, new_size, each), picture, new_size, each)


def test_random_windows_of_maps_equal_resize_then_crop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        integer_map = np.asarray(noise(*rng.integers(1, 120, 2).tolist()))[..., 0]
        new_size = tuple(rng.integers(1, 240, 2).tolist())
        window = draw_window(rng, new_size)
        whole = Image.fromarray(integer_map).resize(new_size[::-1], Image.NEAREST)
        assert np.array_equal(resize_map(integer_map, new_size, window), crop(whole, window))


@pytest.mark.parametrize("new_size", [(512, 640), (20, 25), (50, 60), (41, 61), (100, 30)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_window_in_a_corner_is_right_up_to_the_border(new_size: tuple[int, int], corner: tuple[int, int]) -> None:
    picture = noise(50, 60)
    height, width = new_size[0] // 2, new_size[1] // 2
    window = Window(corner[0] * (new_size[0] - height), corner[1] * (new_size[1] - width), height, width)
    assert_is_resized(resize_picture(picture, new_size, window), picture, new_size, window)


@pytest.mark.parametrize("resample", [Image.NEAREST, Image.BOX, Image.HAMMING, Image.BICUBIC, Image.LANCZOS])
def test_other_filters_are_those_that_were_asked_for(resample: int) -> None:
    picture, window = noise(50, 60), Window(30, 11, 40, 50)
    assert_is_resized(resize_picture(picture, (75, 66), window, resample), picture, (75, 66), window, resample)


@pytest.mark.parametrize(("size", "new_size"), [((1, 40), (3, 120)), ((40, 1), (10, 1)), ((1, 1), (7, 9))])
def test_picture_of_one_row_or_column_is_resized(size: tuple[int, int], new_size: tuple[int, int]) -> None:
    picture, window = noise(*size), Window(0, 0, *new_size)
    assert np.array_equal(resize_picture(picture, new_size, window), crop(picture.resize(new_size[::-1], 2), window))


def test_same_size_is_a_plain_crop() -> None:
    picture, window = noise(30, 40), Window(3, 5, 10, 20)
    assert np.array_equal(resize_picture(picture, (30, 40), window), np.asarray(picture)[3:13, 5:25])


def test_enlarging_a_map_four_times_repeats_each_pixel() -> None:
    integer_map = np.array([[1, 2], [3, 70000]], np.int32)
    enlarged = resize_map(integer_map, (8, 8), Window(2, 2, 4, 4))
    assert enlarged.dtype == np.int32 and enlarged.tolist() == [[1, 1, 2, 2]] * 2 + [[3, 3, 70000, 70000]] * 2


@pytest.mark.parametrize("resample", [Image.BILINEAR, Image.LANCZOS])
def test_small_window_of_a_strong_enlargement_is_filtered_from_pixels_outside_it(resample: int) -> None:
    picture, window = noise(12, 10), Window(401, 333, 30, 40)
    assert_is_resized(resize_picture(picture, (1200, 900), window, resample), picture, (1200, 900), window, resample)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("steps", ["", "resize", "flip", "resize flip", "flip resize", "resize flip resize flip crop"])
def test_planes_are_the_channels_of_the_array_with_nothing_beside_them(image_format: str, steps: str) -> None:
    picture = noise(20, 30)
    written, read = Picture(picture, image_format), Picture(picture, image_format)
    expected = np.asarray(picture)
    for step in steps.split():
        height, width = written.size
        transform = {
            "resize": T.ResizeTransform(height, width, height + 7, width + 12, Image.BILINEAR),
            "flip": T.HFlipTransform(width),
            "crop": T.CropTransform(3, 2, width - 5, height - 4),
        }[step]
        for each in (written, read):
            each.transform(transform)
        expected = transform.apply_image(expected)
    planes = np.full((3, 40, 60), 77, np.uint8)
    written.write_planes(planes)
    height, width = read.size
    channels = slice(None) if image_format == "RGB" else slice(None, None, -1)
    assert np.array_equal(read.array, expected[..., channels])
    assert np.array_equal(planes[:, :height, :width], read.array.transpose(2, 0, 1))
    assert (planes[:, height:] == 77).all() and (planes[:, :, width:] == 77).all()


def test_large_picture_is_resized_in_bands_that_fit_together() -> None:
    picture = noise(500, 90)
    for new_size in ((700, 100), (501, 30), (1200, 91)):
        whole = Window(0, 0, *new_size)
        assert_is_resized(resize_picture(picture, new_size, whole), picture, new_size, whole)
    window = Window(10, 3, 150, 20)  # of a picture made smaller, in bands of 16 rows
    assert_is_resized(resize_picture(picture, (170, 31), window), picture, (170, 31), window)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_map_of_any_type_that_may_not_be_written_to_is_resized(dtype: type) -> None:
    integer_map = np.arange(12).reshape(3, 4).astype(dtype)[:, ::-1]
    integer_map.flags.writeable = False
    assert np.array_equal(resize_map(integer_map, (6, 8), Window(0, 0, 6, 8)), integer_map.repeat(2, 0).repeat(2, 1))
