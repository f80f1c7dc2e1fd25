"""The two training recipes as lists of Detectron2's augmentations, and what they need besides: maps, padding.

Randomness comes from NumPy's and Python's global generators, which Detectron2 seeds in every data worker.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from maskformer.structures import InputError

DETR_SHORT_EDGES = (400, 500, 600)  # pixels, before DETR's crop


class LabelledImage(T.AugInput):
    """An image and its label map, augmented together; the map may hold integers of any width.

    Args:
        image: (H,W,3) uint8.
        label_map: (H,W) integers, ``sem_seg`` to the augmentations.
    """

    image: np.ndarray
    sem_seg: np.ndarray

    def __init__(self, image: np.ndarray, label_map: np.ndarray):
        super().__init__(image, sem_seg=label_map)

    def transform(self, tfm: T.Transform) -> None:
        """Apply one transform to both, in place."""
        self.image = tfm.apply_image(self.image)
        self.sem_seg = transform_map(tfm, self.sem_seg)


def transform_map(transform: T.Transform, integer_map: np.ndarray) -> np.ndarray:
    """Apply a transform to a map of integers; resizing takes the nearest pixel.

    Args:
        transform: what an augmentation returned.
        integer_map: (H,W), any integer type of 1, 2 or 4 bytes.

    Returns:
        The transformed map, of the same type.
    """
    if integer_map.dtype == np.uint8:
        return transform.apply_segmentation(integer_map)
    # Pillow resizes bytes only, so a wider integer travels as its bytes, which move together.
    planes = np.ascontiguousarray(integer_map)[..., None].view(np.uint8)
    return np.ascontiguousarray(transform.apply_segmentation(planes)).view(integer_map.dtype)[..., 0]


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
) -> T.AugmentationList:
    """Resize, crop, jitter the colours and flip: MaskFormer's recipe for semantic segmentation.

    Args:
        resize: of the shortest edge.
        crop: where ``INPUT.CROP.ENABLED``.
        colour_jitter: where ``INPUT.COLOR_AUG_SSD``.
        flip: unless ``INPUT.RANDOM_FLIP`` is "none".
    """
    return T.AugmentationList([step for step in (resize, crop, colour_jitter, flip) if step is not None])


def detr_recipe(
    *,
    resize: T.Augmentation,
    crop: T.Augmentation | None,
    colour_jitter: T.Transform | None,
    flip: T.Augmentation | None,
) -> T.AugmentationList:
    """Flip, then resize, or one time in two resize to 400, 500 or 600, crop, and resize (DETR, appendix A.4).

    Args:
        resize: of the shortest edge, after all cropping.
        crop: where ``INPUT.CROP.ENABLED``; without it, there is no first resizing either.
        colour_jitter: where ``INPUT.COLOR_AUG_SSD``; DETR has none.
        flip: unless ``INPUT.RANDOM_FLIP`` is "none".
    """
    first_resize = T.ResizeShortestEdge(DETR_SHORT_EDGES, sample_style="choice")
    detour = None if crop is None else T.RandomApply(T.AugmentationList([first_resize, crop]), prob=0.5)
    return T.AugmentationList([step for step in (flip, detour, resize, colour_jitter) if step is not None])


def large_scale_jitter_recipe(
    *, image_size: int, min_scale: float, max_scale: float, flip: T.Augmentation | None
) -> T.AugmentationList:
    """Flip, scale to fit a square times a random factor, and cut a square where the result is larger.

    Args:
        image_size: of the square, in pixels.
        min_scale: the least factor.
        max_scale: the largest.
        flip: unless ``INPUT.RANDOM_FLIP`` is "none".
    """
    scale = T.ResizeScale(min_scale, max_scale, target_height=image_size, target_width=image_size)
    cut = T.FixedSizeCrop((image_size, image_size), pad=False)  # labels are padded with other values than Detectron2's
    return T.AugmentationList([step for step in (flip, scale, cut) if step is not None])


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
    return T.ResizeShortestEdge(short_edges, max_size, sample_style)


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
    return ColorAugSSDTransform(img_format=image_format)


def build_flip(direction: str) -> T.Augmentation | None:
    """Build a flip with probability 1/2: "horizontal", "vertical" or "none"."""
    _check_option("INPUT.RANDOM_FLIP", direction, ("horizontal", "vertical", "none"))
    if direction == "none":
        return None
    return T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")


def _check_option(key: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise InputError(f"{key} is {value!r}; expected one of {', '.join(options)}.")
