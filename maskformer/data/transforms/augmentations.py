"""The training recipes as lists of Detectron2's augmentations, with a resizing that computes the crop alone.

Randomness comes from NumPy's and Python's global generators, which Detectron2 seeds in every data worker.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from maskformer.structures import InputError

Step: TypeAlias = T.Augmentation | T.Transform | None  # None: it is switched off
DETR_SHORT_EDGES = (400, 500, 600)  # pixels, before DETR's crop


class LabelledImage(T.AugInput):
    """An image and its label map, augmented together.

    Args:
        image: (H,W,3) uint8, or a picture of Pillow's, which becomes an array when it is first asked for.
        sem_seg: (H,W) integers of any width; None: there is no label map.
        image_format: "RGB", or "BGR" for a picture of Pillow's that augmentations shall see so.
    """

    def __init__(self, image: np.ndarray | Image.Image, sem_seg: np.ndarray | None = None, image_format: str = "RGB"):
        self.boxes = None  # Detectron2's transforms of boxes have no part in segmentation
        self.sem_seg = sem_seg
        self._image = image
        self._is_bgr = image_format == "BGR"
        self.original_size = self.shape  # before any transform

    @property
    def image(self) -> np.ndarray:
        """(H,W,3) uint8, as transformed so far."""
        if isinstance(self._image, Image.Image):
            pixels = np.asarray(self._image)
            self._image = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if self._is_bgr else pixels
        return self._image

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), as transformed so far."""
        image = self._image
        return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[0], image.shape[1])

    def transform(self, tfm: T.Transform) -> None:
        """Apply one transform to both, in place."""
        if isinstance(self._image, Image.Image) and isinstance(tfm, ResizedCropTransform):
            self._image = tfm.resize(self._image)  # without an array of the whole
        else:
            self._image = tfm.apply_image(self.image)
        if self.sem_seg is not None:
            self.sem_seg = transform_map(tfm, self.sem_seg)


def transform_map(transform: T.Transform, integer_map: np.ndarray) -> np.ndarray:
    """Apply a transform to a map (H,W) of any integer type, which it keeps; resizing takes the nearest pixel."""
    if integer_map.dtype == np.uint8:
        return transform.apply_segmentation(integer_map)
    # Detectron2's transforms know bytes only, so a wider integer travels as its bytes, which move together.
    planes = np.ascontiguousarray(integer_map)[..., None].view(np.uint8)
    return np.ascontiguousarray(transform.apply_segmentation(planes)).view(integer_map.dtype)[..., 0]


class ResizedCropTransform(T.Transform):
    """A resizing of which only a window is computed: pixels differ from the whole's by rounding, labels not.

    Args:
        size: (height, width) of the image.
        new_size: (height, width) that the whole of it would be resized to.
        window: (top, left, height, width) of what is kept of that.
    """

    def __init__(self, size: tuple[int, int], new_size: tuple[int, int], window: tuple[int, int, int, int]):
        super().__init__()
        self.size, self.new_size, self.window = size, new_size, window

    def resize(self, picture: Image.Image) -> Image.Image:
        """Resize a picture of Pillow's, bilinearly."""
        top, left, height, width = self.window
        (old_height, old_width), (new_height, new_width) = self.size, self.new_size
        box = (
            left * old_width / new_width,
            top * old_height / new_height,
            (left + width) * old_width / new_width,
            (top + height) * old_height / new_height,
        )
        return picture.resize((width, height), Image.Resampling.BILINEAR, box)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Resize an image (H,W,3) uint8."""
        return np.asarray(self.resize(Image.fromarray(np.ascontiguousarray(img))))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize a map (H,W) or (H,W,channels) to the nearest pixel."""
        top, left, height, width = self.window
        rows = _nearest(self.size[0], self.new_size[0])[top : top + height]
        columns = _nearest(self.size[1], self.new_size[1])[left : left + width]
        return segmentation.take(rows, axis=0).take(columns, axis=1)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Move points (n,2), x before y; they may end outside the window."""
        scale = self.new_size[1] / self.size[1], self.new_size[0] / self.size[0]
        return coords * scale - (self.window[1], self.window[0])


def _nearest(size: int, new_size: int) -> np.ndarray:
    """The original pixel of each resized one; Pillow adds up steps, and so does this, to round as it does."""
    steps = np.full(new_size, size / new_size)
    steps[0] *= 0.5
    return np.cumsum(steps).astype(np.intp)


class ResizedCrop(T.Augmentation):
    """A resizing and the crop that follows it, drawn in this order and computed at once.

    Args:
        resize: Detectron2's, which draws the size of the whole.
        crop: Detectron2's, which draws a window of it; None: the whole is kept.
    """

    def __init__(self, resize: T.Augmentation, crop: T.Augmentation | None = None):
        self.resize = resize
        self.crop = crop

    def get_transform(self, shape: tuple[int, int], sem_seg: np.ndarray | None) -> ResizedCropTransform:
        """Draw the size and the window, by the (height, width); a crop with an area limit looks at ``sem_seg``."""
        resize = self.resize.get_transform(_blank(shape))
        if isinstance(resize, T.NoOpTransform):
            resize = T.ResizeTransform(*shape, *shape)
        height, width = new_size = resize.new_h, resize.new_w
        whole = ResizedCropTransform(shape, new_size, (0, 0, height, width))
        if self.crop is None:
            return whole
        if isinstance(self.crop, T.RandomCrop_CategoryAreaConstraint):
            assert sem_seg is not None, "no label map to measure areas in"
            crop = self.crop.get_transform(_blank(new_size), whole.apply_segmentation(sem_seg))
        else:
            (crop,) = T.TransformList([self.crop.get_transform(_blank(new_size))]).transforms
        top, left = int(crop.y0), int(crop.x0)
        window = top, left, min(int(crop.h), height - top), min(int(crop.w), width - left)
        return ResizedCropTransform(shape, new_size, window)


class ResizeHalfToEven(T.Augmentation):
    """Resizes as Detectron2's ``ResizeShortestEdge`` does, but a side of n + 1/2 pixels becomes the even neighbour.

    Args:
        short_edge: length of the shorter side, in pixels; 0: nothing is resized.
        max_size: the longer side is at most this.
    """

    def __init__(self, short_edge: int, max_size: int):
        self.short_edge, self.max_size = short_edge, max_size

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The resizing of an image (H,W,...)."""
        height, width = image.shape[:2]
        if self.short_edge == 0:
            return T.NoOpTransform()
        scale = min(self.short_edge / min(height, width), self.max_size / max(height, width))
        return T.ResizeTransform(height, width, round(height * scale), round(width * scale))


def _blank(size: tuple[int, int]) -> np.ndarray:
    """(H,W,3) uint8 zeros in one byte of memory, for augmentations that draw by the size alone."""
    return np.broadcast_to(np.uint8(0), (*size, 3))


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


def crop_recipe(*, resize: T.Augmentation, crop: Step, colour_jitter: Step, flip: Step) -> T.AugmentationList:
    """Resize the shortest edge, crop, jitter the colours and flip: MaskFormer's recipe for semantic segmentation."""
    return _in_order(ResizedCrop(resize, crop), colour_jitter, flip)


def detr_recipe(*, resize: T.Augmentation, crop: Step, colour_jitter: Step, flip: Step) -> T.AugmentationList:
    """Flip, then resize, or one time in two resize to 400, 500 or 600, crop, and resize (DETR, appendix A.4).

    Without a crop, there is no first resizing either. DETR jitters no colours.
    """
    first_resize = T.ResizeShortestEdge(DETR_SHORT_EDGES, sample_style="choice")
    detour = None if crop is None else T.RandomApply(ResizedCrop(first_resize, crop), prob=0.5)
    return _in_order(flip, detour, ResizedCrop(resize), colour_jitter)


def large_scale_jitter_recipe(
    *, image_size: int, min_scale: float, max_scale: float, flip: Step, colour_jitter: Step = None
) -> T.AugmentationList:
    """Flip, scale to fit a square of ``image_size`` pixels times a random factor, cut where larger, jitter colours."""
    scale = T.ResizeScale(min_scale, max_scale, target_height=image_size, target_width=image_size)
    # Not padded: labels are, with other values than Detectron2's.
    return _in_order(flip, ResizedCrop(scale, T.FixedSizeCrop((image_size, image_size), pad=False)), colour_jitter)


def _in_order(*steps: Step) -> T.AugmentationList:
    return T.AugmentationList([step for step in steps if step is not None])


def build_resize(short_edges: Sequence[int], max_size: int, sample_style: str) -> T.Augmentation:
    """Build the resizing of the shortest edge: to a "choice" of some, or in the "range" between two, in pixels."""
    _check_option("INPUT.MIN_SIZE_TRAIN_SAMPLING", sample_style, ("choice", "range"))
    if sample_style == "range" and len(short_edges) != 2:
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN has {len(short_edges)} values; expected 2, the ends of a range, or set "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING to choice."
        )
    return T.ResizeShortestEdge(short_edges, max_size, sample_style)


def build_test_resize(short_edge: int, max_size: int, rounding: str) -> T.Augmentation:
    """Build the resizing of the shortest edge, 0 for none; half a pixel is rounded "up" or to "even"."""
    if rounding == "even":
        return ResizeHalfToEven(short_edge, max_size)
    return T.ResizeShortestEdge([short_edge], max_size, "choice")


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
        return T.RandomCrop(crop_type, crop_size)
    return T.RandomCrop_CategoryAreaConstraint(crop_type, crop_size, single_category_max_area, ignore_label)


def build_colour_jitter(image_format: str) -> T.Transform:
    """Build SSD's random brightness, contrast, saturation and hue for "RGB" or "BGR" images."""
    _check_option("INPUT.FORMAT", image_format, ("RGB", "BGR"))
    return ColourJitter(img_format=image_format)


def build_flip(direction: str) -> T.Augmentation | None:
    """Build a flip with probability 1/2: "horizontal", "vertical" or "none"."""
    _check_option("INPUT.RANDOM_FLIP", direction, ("horizontal", "vertical", "none"))
    if direction == "none":
        return None
    return T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")


def _check_option(key: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise InputError(f"{key} is {value!r}; expected one of {', '.join(options)}.")
