from __future__ import annotations

import random

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from maskformer.data.transforms.augmentations import (
    LabelledImage,
    ResizedCrop,
    ResizedCropTransform,
    build_colour_jitter,
    build_crop,
    build_flip,
    build_resize,
    build_test_resize,
    crop_recipe,
    detr_recipe,
    large_scale_jitter_recipe,
    pad_to_multiple,
    transform_map,
)
from maskformer.structures import InputError


def labelled_noise(height: int, width: int) -> LabelledImage:
    """An image whose red channel is its label."""
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return LabelledImage(image, image[..., 0].copy())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize(
    "transform",
    [
        *(T.ResizeTransform(6, 8, 13, 5), T.ResizeTransform(6, 8, 6, 8), T.HFlipTransform(8)),
        *(T.CropTransform(1, 2, 4, 3), ResizedCropTransform((6, 8), (13, 5), (4, 1, 8, 3))),
    ],
)
def test_wide_integers_are_transformed_as_their_indices_are(dtype: type, transform: T.Transform) -> None:
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8)
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 48, endpoint=True).astype(dtype)
    moved = transform_map(transform, values[indices])
    assert moved.dtype == dtype
    assert np.array_equal(moved, values[transform.apply_segmentation(indices)])


def test_doubling_a_map_repeats_each_pixel() -> None:
    label_map = np.array([[1, 2], [3, 70000]], np.int32)
    doubled = transform_map(T.ResizeTransform(2, 2, 4, 4), label_map)
    assert np.array_equal(doubled, label_map.repeat(2, axis=0).repeat(2, axis=1))


def test_crop_and_flip_move_image_and_label_together() -> None:
    recipe = crop_recipe(
        resize=build_resize((0,), 100, "choice"),
        crop=build_crop("absolute", (5, 6)),
        colour_jitter=None,
        flip=build_flip("horizontal"),
    )
    windows = set()
    for _ in range(20):
        labelled = labelled_noise(12, 16)
        recipe(labelled)
        assert labelled.image.shape == (5, 6, 3)
        assert np.array_equal(labelled.image[..., 0], labelled.sem_seg)
        windows.add(labelled.sem_seg.tobytes())
    assert len(windows) > 10


def test_colour_jitter_changes_the_image_alone() -> None:
    labelled = labelled_noise(12, 16)
    before = labelled.image.copy(), labelled.sem_seg.copy()
    T.AugmentationList([build_colour_jitter("RGB")])(labelled)
    assert not np.array_equal(labelled.image, before[0])
    assert np.array_equal(labelled.sem_seg, before[1])


def test_crop_avoids_one_category_over_the_area_limit_and_ignored_pixels_do_not_count() -> None:
    label_map = np.full((20, 40), 255, np.uint8)
    label_map[0, :20], label_map[0, 20:] = 0, 1
    image = np.zeros((20, 40, 3), np.uint8)

    def largest_share(limit: float) -> float:
        labelled = LabelledImage(image, label_map)
        build_crop("absolute", (20, 20), limit, 255)(labelled)
        counts = np.bincount(labelled.sem_seg.ravel(), minlength=256)[:255]
        return counts.max() / counts.sum()

    assert max(largest_share(0.9) for _ in range(30)) < 0.9
    assert max(largest_share(1.0) for _ in range(30)) > 0.9


def test_crop_takes_the_whole_of_a_side_shorter_than_its_size() -> None:
    labelled = labelled_noise(4, 9)
    build_crop("absolute", (8, 8))(labelled)
    assert labelled.sem_seg.shape == (4, 8)


def test_detr_recipe_crops_half_of_the_time_and_ends_at_the_wanted_size() -> None:
    recipe = detr_recipe(
        resize=build_resize((48,), 400, "choice"),
        crop=build_crop("absolute_range", (100, 300)),
        colour_jitter=None,
        flip=build_flip("horizontal"),
    )
    cropped = 0
    for _ in range(60):
        labelled = labelled_noise(40, 60)
        recipe(labelled)
        assert min(labelled.sem_seg.shape) == 48
        assert labelled.image.shape[:2] == labelled.sem_seg.shape
        cropped += labelled.sem_seg.shape != (48, 72)
    assert 20 <= cropped <= 40


def test_detr_recipe_without_crop_keeps_the_aspect_ratio() -> None:
    recipe = detr_recipe(resize=build_resize((48, 64), 400, "choice"), crop=None, colour_jitter=None, flip=None)
    shapes = set()
    for _ in range(20):
        labelled = labelled_noise(40, 60)
        recipe(labelled)
        shapes.add(labelled.sem_seg.shape)
    assert shapes == {(48, 72), (64, 96)}


def test_padding_reaches_the_next_multiple_at_bottom_and_right() -> None:
    padded = pad_to_multiple(np.ones((3, 5), np.uint8), 4, 9)
    assert padded.shape == (4, 8)
    assert (padded[:3, :5] == 1).all() and (padded[3] == 9).all() and (padded[:, 5:] == 9).all()
    assert pad_to_multiple(np.ones((3, 8, 3), np.uint8), 4, 9).shape == (4, 8, 3)


@pytest.mark.parametrize(("size", "divisor"), [((8, 4), 4), ((3, 5), 0), ((3, 5), -1)])
def test_nothing_is_padded_where_the_size_fits_or_no_divisor_is_given(size: tuple[int, int], divisor: int) -> None:
    array = np.ones(size, np.uint8)
    assert pad_to_multiple(array, divisor, 9) is array


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: build_flip("sideways"), "INPUT.RANDOM_FLIP"),
        (lambda: build_crop("fixed", (1, 1)), "INPUT.CROP.TYPE"),
        (lambda: build_colour_jitter("L"), "INPUT.FORMAT"),
        (lambda: build_resize((1,), 2, "all"), "INPUT.MIN_SIZE_TRAIN_SAMPLING"),
        (lambda: build_resize((1, 2, 3), 2, "range"), "INPUT.MIN_SIZE_TRAIN "),
    ],
)
def test_unknown_option_names_its_key(build: object, key: str) -> None:
    with pytest.raises(InputError, match=f"{key}.*expected"):
        build()


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colour_jitter_draws_and_gives_what_detectron2s_does(image_format: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    theirs, ours = ColorAugSSDTransform(img_format=image_format), build_colour_jitter(image_format)
    for seed in range(100):
        random.seed(seed)
        expected, next_draw = theirs.apply_image(image), random.random()
        random.seed(seed)
        assert np.array_equal(ours.apply_image(image), expected)
        assert random.random() == next_draw


def plain_recipes() -> dict[str, tuple[T.AugmentationList, T.AugmentationList]]:
    """Ours, and the same of Detectron2's augmentations on whole arrays."""
    sizes, crop, flip = [20, 33, 48, 97], ("absolute", (24, 30)), {"horizontal": True, "vertical": False}
    first, last = (
        T.ResizeShortestEdge([400, 500, 600], sample_style="choice"),
        T.ResizeShortestEdge(sizes, 400, "choice"),
    )
    parts = {"resize": build_resize(sizes, 400, "choice"), "colour_jitter": None, "flip": build_flip("horizontal")}
    limited = ("absolute", (24, 30), 0.5, 255)
    detour = T.RandomApply(T.AugmentationList([first, T.RandomCrop("absolute_range", (100, 300))]), prob=0.5)
    scale = T.ResizeScale(0.3, 2.0, target_height=40, target_width=40)
    return {
        "crop": (
            crop_recipe(crop=build_crop(*crop), **parts),
            T.AugmentationList([last, T.RandomCrop(*crop), T.RandomFlip(**flip)]),
        ),
        "limited crop": (
            crop_recipe(crop=build_crop(*limited), **parts),
            T.AugmentationList([last, T.RandomCrop_CategoryAreaConstraint(*limited), T.RandomFlip(**flip)]),
        ),
        "detr": (
            detr_recipe(crop=build_crop("absolute_range", (100, 300)), **parts),
            T.AugmentationList([T.RandomFlip(**flip), detour, last]),
        ),
        "large-scale jitter": (
            large_scale_jitter_recipe(image_size=40, min_scale=0.3, max_scale=2.0, flip=build_flip("horizontal")),
            T.AugmentationList([T.RandomFlip(**flip), scale, T.FixedSizeCrop((40, 40), pad=False)]),
        ),
    }


@pytest.mark.parametrize("as_picture", [False, True])
@pytest.mark.parametrize("name", ["crop", "limited crop", "detr", "large-scale jitter"])
def test_recipe_draws_and_gives_what_detectron2s_on_whole_arrays_do(name: str, as_picture: bool) -> None:
    ours, theirs = plain_recipes()[name]
    image = labelled_noise(45, 60).image
    label_map = np.random.default_rng(1).choice([0, 1, 255], (45, 60)).astype(np.uint8)
    for seed in range(40):
        np.random.seed(seed)
        expected = T.AugInput(image, sem_seg=label_map)
        theirs(expected)
        next_draw = np.random.random()
        np.random.seed(seed)
        labelled = LabelledImage(Image.fromarray(image) if as_picture else image, label_map)
        transforms = ours(labelled)
        assert np.random.random() == next_draw
        assert np.array_equal(labelled.sem_seg, expected.sem_seg)
        assert np.array_equal(transform_map(transforms, label_map), expected.sem_seg)
        assert_equal_but_for_rounding(labelled.image, expected.image, times=2 if name == "detr" else 1)


def assert_equal_but_for_rounding(actual: np.ndarray, expected: np.ndarray, times: int = 1) -> None:
    """Pillow rounds between rows and columns, and what is first depends on the sizes: one level, very rarely two."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype == np.uint8
    levels = np.abs(actual.astype(int) - expected)
    assert levels.max() <= 2 * times
    assert (levels > times).mean() < 0.002


def test_window_is_that_of_the_whole_but_for_rounding_of_pixels() -> None:
    rng = np.random.default_rng(0)
    for trial in range(300):
        size = tuple(rng.integers(1, 120, 2).tolist())
        new_size = tuple(rng.integers(1, 240, 2).tolist())
        height, width = (int(rng.integers(1, edge + 1)) for edge in new_size)
        ends = (new_size[0] - height, new_size[1] - width)
        # Some in a corner, where the filter is cut off; some anywhere.
        top, left = (int(rng.choice([0, end]) if trial % 2 else rng.integers(end + 1)) for end in ends)
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        whole = T.ResizeTransform(*size, *new_size)
        window = slice(top, top + height), slice(left, left + width)
        transform = ResizedCropTransform(size, new_size, (top, left, height, width))
        assert_equal_but_for_rounding(transform.apply_image(image), whole.apply_image(image)[window])
        labels = image[..., 0]
        assert np.array_equal(transform.apply_segmentation(labels), whole.apply_segmentation(labels)[window])
        points = np.array([[0.0, 0.0], [size[1], size[0]], [1.5, 0.25]])
        expected = T.CropTransform(left, top, width, height).apply_coords(whole.apply_coords(points.copy()))
        np.testing.assert_allclose(transform.apply_coords(points), expected)


def test_same_size_is_a_plain_crop() -> None:
    image = labelled_noise(30, 40).image
    transform = ResizedCropTransform((30, 40), (30, 40), (3, 5, 10, 20))
    assert np.array_equal(transform.apply_image(image), image[3:13, 5:25])


def test_crop_of_a_map_of_many_pixels_is_that_of_the_whole() -> None:
    # Steps along an edge add up, and so do their rounding errors.
    label_map = np.random.default_rng(0).integers(0, 256, (3, 6000), dtype=np.uint8)
    for new_width in (5999, 6001, 7919, 12000):
        whole = np.asarray(Image.fromarray(label_map).resize((new_width, 5), Image.NEAREST))
        transform = ResizedCropTransform((3, 6000), (5, new_width), (1, new_width - 500, 4, 500))
        assert np.array_equal(transform.apply_segmentation(label_map), whole[1:, -500:])


def test_picture_in_bgr_is_seen_so_by_augmentations() -> None:
    pixels = labelled_noise(4, 5).image
    for resize in (T.AugmentationList([]), ResizedCrop(build_resize((4,), 100, "choice"))):
        labelled = LabelledImage(Image.fromarray(pixels), image_format="BGR")
        resize(labelled)
        assert np.array_equal(labelled.image, pixels[..., ::-1])


def test_augmentation_that_looks_at_the_image_gets_the_resized_one() -> None:
    class Brightest(T.Augmentation):
        def get_transform(self, image: np.ndarray) -> T.Transform:
            row, column = np.unravel_index(image[..., 0].argmax(), image.shape[:2])
            return T.CropTransform(int(column), int(row), 1, 1)

    image = np.zeros((4, 6, 3), np.uint8)
    image[2, 3] = 200
    labelled = LabelledImage(Image.fromarray(image))
    T.AugmentationList([ResizedCrop(build_resize((8,), 100, "choice")), Brightest()])(labelled)
    assert labelled.image.shape == (1, 1, 3) and labelled.image[0, 0, 0] > 100


def test_halves_of_pixels_are_rounded_up_or_to_even() -> None:
    for size, up, even in (((64, 83), (96, 125), (96, 124)), ((64, 85), (96, 128), (96, 128))):
        sizes = [build_test_resize(96, 1000, rounding).get_transform(np.zeros(size)) for rounding in ("up", "even")]
        assert [(made.new_h, made.new_w) for made in sizes] == [up, even]


def test_long_side_is_limited_and_nothing_is_resized_where_none_is_asked_for() -> None:
    made = build_test_resize(64, 100, "even").get_transform(np.zeros((20, 50)))
    assert (made.new_h, made.new_w) == (40, 100)
    assert isinstance(build_test_resize(0, 100, "even").get_transform(np.zeros((20, 50))), T.NoOpTransform)
