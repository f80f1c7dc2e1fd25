"""The two training recipes as lists of Detectron2's augmentations, and what they need besides: maps, padding.

Randomness comes from NumPy's and Python's global generators, which Detectron2 seeds in every data worker.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from maskformer.structures import InputError

from ..files.counting import count_values
from .lazy import IntegerMap, Picture

DETR_SHORT_EDGES = (400, 500, 600)  # pixels, before DETR's crop

_Augmentation = TypeVar("_Augmentation", bound=T.Augmentation)


class LabelledImage(T.AugInput):
    """An image and its label map, augmented together; the map may hold integers of any width.

    Geometry is drawn first and computed later, so that of a resized image only the crop is ever made. An augmentation
    that looks at ``image`` or ``sem_seg`` gets what it expects; those that this module builds look at ``blank`` and
    ``labels``, which cost nothing.

    Args:
        image: (H,W,3) uint8, or the same as a picture of Pillow's.
        label_map: (H,W) integers, ``sem_seg`` to the augmentations; None: there is none.
        image_format: "RGB", or "BGR" for a picture of Pillow's that augmentations shall see so.
    """

    def __init__(self, image: np.ndarray | Image.Image, label_map: np.ndarray | None = None, image_format: str = "RGB"):
        self.boxes = None  # Detectron2's transforms of boxes have no part in segmentation
        self.picture = Picture(image, image_format)
        self.labels: IntegerMap | None = None
        if label_map is not None:
            self.add_labels(label_map)

    def add_labels(self, label_map: np.ndarray) -> None:
        """Move a label map (H,W) along with the image from now on."""
        self.labels = IntegerMap(label_map)

    @property
    def image(self) -> np.ndarray:
        """(H,W,3) uint8, as transformed so far."""
        return self.picture.array

    @property
    def sem_seg(self) -> np.ndarray:
        """(H,W) integers, as transformed so far."""
        assert self.labels is not None, "there is no label map"
        return self.labels.array

    @property
    def blank(self) -> np.ndarray:
        """(H,W,3) uint8 zeros of the present size: enough for an augmentation that draws a place or a size."""
        return np.ndarray((*self.picture.size, 3), np.uint8, b"\0", strides=(0, 0, 0))  # the same byte everywhere

    def transform(self, tfm: T.Transform) -> None:
        """Apply one transform to both, in place."""
        self.picture.transform(tfm)
        if self.labels is not None:
            self.labels.transform(tfm)


class Recipe(T.AugmentationList):
    """Augmentations in order, of a ``LabelledImage`` or of any other input of Detectron2's."""

    def __call__(self, aug_input: T.AugInput) -> T.TransformList:
        """Augment in place, and return what was done."""
        if isinstance(aug_input, LabelledImage):
            return super().__call__(aug_input)
        labelled = LabelledImage(aug_input.image, aug_input.sem_seg)
        transforms = super().__call__(labelled)
        aug_input.image = labelled.image
        if aug_input.sem_seg is not None:
            aug_input.sem_seg = labelled.sem_seg
        if aug_input.boxes is not None:
            aug_input.boxes = transforms.apply_box(aug_input.boxes)
        return transforms


class CategoryAreaCrop(T.RandomCrop_CategoryAreaConstraint):
    """Detectron2's crop with the same draws; it counts the labels of a window in a fraction of the time."""

    input_args = ("blank", "labels")

    def get_transform(self, blank: np.ndarray, labels: IntegerMap | None) -> T.Transform:
        """Draw a window, up to ten times.

        Args:
            blank: (H,W,3), for its size.
            labels: of the same size.
        """
        assert labels is not None, "no label map to measure areas in"
        for _ in range(10):
            window = self.crop_aug.get_transform(blank)
            counts = count_values(labels.window(window))
            if self.ignored_category is not None and self.ignored_category < len(counts):
                counts[self.ignored_category] = 0
            if np.count_nonzero(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area:
                break
        return window


class ColourJitter(ColorAugSSDTransform):
    """Detectron2's jitter with the same draws and values; each step is one look-up or one conversion of the image."""

    def apply_image(self, img: np.ndarray, interp: str | None = None) -> np.ndarray:  # noqa: ARG002
        """Jitter an image.

        Args:
            img: (H,W,3) uint8, left as it is.
            interp: of no effect.
        """
        img = self.brightness(np.ascontiguousarray(img))
        contrast_first = random.randrange(2)
        steps = (self.saturation, self.hue)
        for step in (self.contrast, *steps) if contrast_first else (*steps, self.contrast):
            img = step(img)
        return img

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """Scale and shift values: in a table of all 256, not in each pixel."""
        return cv2.LUT(img, super().convert(np.arange(256, dtype=np.uint8), alpha, beta))

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Scale the saturation, one time in two."""
        if random.randrange(2):
            alpha = random.uniform(self.saturation_low, self.saturation_high)
            return self._look_up(img, 1, super().convert(np.arange(256, dtype=np.uint8), alpha))
        return img

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Turn the hue, one time in two."""
        if random.randrange(2):
            turned = (np.arange(256) + random.randint(-self.hue_delta, self.hue_delta)) % 180
            return self._look_up(img, 0, turned.astype(np.uint8))
        return img

    def _look_up(self, img: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
        """Replace the hue (channel 0), saturation (1) or value (2) by a table's."""
        there, back = (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB) if self.is_rgb else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
        hsv = cv2.cvtColor(img, there)
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
        return cv2.cvtColor(hsv, back)


def transform_map(transform: T.Transform, integer_map: np.ndarray) -> np.ndarray:
    """Apply a transform to a map of integers; resizing takes the nearest pixel.

    Args:
        transform: what an augmentation returned.
        integer_map: (H,W), any integer type of 1, 2 or 4 bytes.

    Returns:
        The transformed map, of the same type.
    """
    moved = IntegerMap(integer_map)
    moved.transform(transform)
    return moved.array


def pad_to_multiple(array: np.ndarray, divisor: int, value: int) -> np.ndarray:
    """Pad bottom and right, so that height and width are multiples of a number.

    Args:
        array: (H,W) or (H,W,channels).
        divisor: the number, in pixels; below 1: no padding.
        value: of the padded pixels.

    Returns:
        The padded array, or the array itself where there is nothing to pad.
    """
    height, width = array.shape[:2]
    if divisor < 1 or (height % divisor == 0 and width % divisor == 0):
        return array
    padded_size = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
    padded = np.full(padded_size + array.shape[2:], value, dtype=array.dtype)
    padded[:height, :width] = array
    return padded


def crop_recipe(
    *,
    resize: T.Augmentation,
    crop: T.Augmentation | None,
    colour_jitter: T.Transform | None,
    flip: T.Augmentation | None,
) -> Recipe:
    """Resize, crop, jitter the colours and flip: MaskFormer's recipe for semantic segmentation.

    Args:
        resize: of the shortest edge.
        crop: where ``INPUT.CROP.ENABLED``.
        colour_jitter: where ``INPUT.COLOR_AUG_SSD``.
        flip: unless ``INPUT.RANDOM_FLIP`` is "none".
    """
    return Recipe([step for step in (resize, crop, colour_jitter, flip) if step is not None])


def detr_recipe(
    *,
    resize: T.Augmentation,
    crop: T.Augmentation | None,
    colour_jitter: T.Transform | None,
    flip: T.Augmentation | None,
) -> Recipe:
    """Flip, then resize, or one time in two resize to 400, 500 or 600, crop, and resize (DETR, appendix A.4).

    Args:
        resize: of the shortest edge, after all cropping.
        crop: where ``INPUT.CROP.ENABLED``; without it, there is no first resizing either.
        colour_jitter: where ``INPUT.COLOR_AUG_SSD``; DETR has none.
        flip: unless ``INPUT.RANDOM_FLIP`` is "none".
    """
    first_resize = _by_size(T.ResizeShortestEdge(DETR_SHORT_EDGES, sample_style="choice"))
    detour = None if crop is None else T.RandomApply(Recipe([first_resize, crop]), prob=0.5)
    return Recipe([step for step in (flip, detour, resize, colour_jitter) if step is not None])


def large_scale_jitter_recipe(
    *, image_size: int, min_scale: float, max_scale: float, flip: T.Augmentation | None
) -> Recipe:
    """Flip, scale to fit a square times a random factor, and cut a square where the result is larger.

    Args:
        image_size: of the square, in pixels.
        min_scale: the least factor.
        max_scale: the largest.
        flip: unless ``INPUT.RANDOM_FLIP`` is "none".
    """
    scale = _by_size(T.ResizeScale(min_scale, max_scale, target_height=image_size, target_width=image_size))
    # Not padded: labels are, with other values than Detectron2's.
    cut = _by_size(T.FixedSizeCrop((image_size, image_size), pad=False))
    return Recipe([step for step in (flip, scale, cut) if step is not None])


def build_resize(short_edges: Sequence[int], max_size: int, sample_style: str) -> T.Augmentation:
    """Build the training-time resizing of the shortest edge.

    Args:
        short_edges: pixels, ``INPUT.MIN_SIZE_TRAIN``.
        max_size: the longest edge allowed, in pixels.
        sample_style: "choice" of one of ``short_edges``, or "range" between two.
    """
    _check_option("INPUT.MIN_SIZE_TRAIN_SAMPLING", sample_style, ("choice", "range"))
    if sample_style == "range" and len(short_edges) != 2:
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN has {len(short_edges)} values; expected 2, the ends of a range, or set "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING to choice."
        )
    return _by_size(T.ResizeShortestEdge(short_edges, max_size, sample_style))


def build_crop(
    crop_type: str, crop_size: Sequence[float], single_category_max_area: float = 1.0, ignore_label: int | None = None
) -> T.Augmentation:
    """Build a random crop that in ten tries avoids a window in which one category fills too much.

    Args:
        crop_type: one of Detectron2's four, ``INPUT.CROP.TYPE``.
        crop_size: (height, width), pixels or fractions as the type says.
        single_category_max_area: the largest fraction one category may have; 1: any, and no label map is needed.
        ignore_label: pixels that do not count.
    """
    _check_option("INPUT.CROP.TYPE", crop_type, ("absolute", "absolute_range", "relative", "relative_range"))
    if single_category_max_area >= 1.0:
        return _by_size(T.RandomCrop(crop_type, crop_size))
    return CategoryAreaCrop(crop_type, crop_size, single_category_max_area, ignore_label)


def build_colour_jitter(image_format: str) -> T.Transform:
    """Build SSD's random brightness, contrast, saturation and hue for "RGB" or "BGR" images."""
    _check_option("INPUT.FORMAT", image_format, ("RGB", "BGR"))
    return ColourJitter(img_format=image_format)


def build_flip(direction: str) -> T.Augmentation | None:
    """Build a flip with probability 1/2: "horizontal", "vertical" or "none"."""
    _check_option("INPUT.RANDOM_FLIP", direction, ("horizontal", "vertical", "none"))
    if direction == "none":
        return None
    return _by_size(T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical"))


def _by_size(augmentation: _Augmentation) -> _Augmentation:
    """Let an augmentation of a ``LabelledImage`` look at no more than its size."""
    augmentation.input_args = ("blank",)
    return augmentation


def _check_option(key: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise InputError(f"{key} is {value!r}; expected one of {', '.join(options)}.")
