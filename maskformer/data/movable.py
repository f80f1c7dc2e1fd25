"""Pictures and maps under a series of Detectron2's transforms, of which a resizing waits for the crop that follows."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data import transforms as T
from PIL import Image

from maskformer.data.resampling import Window, resize_map, resize_picture


class _Movable:
    """What pictures and maps share: the order of transforms."""

    _resizing: T.ResizeTransform | None = None  # drawn, not yet computed

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) after all transforms so far."""
        return self._computed_size if self._resizing is None else (self._resizing.new_h, self._resizing.new_w)

    def transform(self, transform: T.Transform) -> None:
        """Apply a transform, or a list of them, in place."""
        if isinstance(transform, T.TransformList):
            for step in transform.transforms:
                self.transform(step)
        elif type(transform) is T.ResizeTransform:
            self._settle()
            assert self.size == (transform.h, transform.w), f"{self.size} is not {(transform.h, transform.w)}"
            self._resizing = transform
        elif type(transform) is T.CropTransform:
            self._cut(self._clip(transform))
            self._resizing = None
        elif type(transform) is not T.NoOpTransform:
            self._settle()
            self._apply(transform)

    def _settle(self) -> None:
        """Compute the resizing that waits, if one does."""
        if self._resizing is not None:
            if self.size != self._computed_size:
                self._cut(Window(0, 0, *self.size))
            self._resizing = None

    def _clip(self, crop: T.CropTransform) -> Window:
        """A crop may reach beyond the image, whose part it then takes."""
        height, width = self.size
        top, left = min(int(crop.y0), height), min(int(crop.x0), width)
        return Window(top, left, min(int(crop.h), height - top), min(int(crop.w), width - left))

    @property
    def _computed_size(self) -> tuple[int, int]:
        raise NotImplementedError

    def _cut(self, window: Window) -> None:
        raise NotImplementedError

    def _apply(self, transform: T.Transform) -> None:
        raise NotImplementedError


class Picture(_Movable):
    """An image in colours, kept as Pillow decoded it for as long as Pillow does all the work.

    Args:
        image: (H,W,3) uint8 or a picture of mode RGB.
        image_format: "RGB", or "BGR" for a picture whose ``array`` shall be so.
    """

    def __init__(self, image: np.ndarray | Image.Image, image_format: str = "RGB"):
        self._image = image
        self._is_bgr = image_format == "BGR"

    @property
    def array(self) -> np.ndarray:
        """(H,W,3) uint8 after all transforms so far."""
        self._settle()
        if isinstance(self._image, Image.Image):
            self._image = self._to_array(np.asarray(self._image))
        return self._image

    def _to_array(self, pixels: np.ndarray) -> np.ndarray:
        """From the order of a picture's channels to that of the array."""
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if self._is_bgr else pixels

    @property
    def _computed_size(self) -> tuple[int, int]:
        if isinstance(self._image, Image.Image):
            return self._image.height, self._image.width
        return self._image.shape[:2]

    def _cut(self, window: Window) -> None:
        if self._resizing is None:
            self._image = (
                self._image.crop((window.left, window.top, window.left + window.width, window.top + window.height))
                if isinstance(self._image, Image.Image)
                else _cut(self._image, window)
            )
        elif isinstance(self._image, Image.Image):
            self._image = self._to_array(resize_picture(self._image, self.size, window, self._resizing.interp))
        elif self._image.dtype == np.uint8 and self._image.shape[2:] == (3,):
            self._image = resize_picture(contiguous(self._image), self.size, window, self._resizing.interp)
        else:
            self._image = _cut(self._resizing.apply_image(self._image), window)

    def _apply(self, transform: T.Transform) -> None:
        if type(transform) is T.HFlipTransform and isinstance(self._image, Image.Image):
            self._image = self._image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        else:
            self._image = transform.apply_image(self.array)


class IntegerMap(_Movable):
    """A label or segment map; resizing takes the nearest pixel.

    Args:
        integer_map: (H,W), any integer type of 1, 2 or 4 bytes.
    """

    def __init__(self, integer_map: np.ndarray):
        self._map = integer_map

    @property
    def array(self) -> np.ndarray:
        """(H,W) after all transforms so far."""
        self._settle()
        return self._map

    def window(self, crop: T.CropTransform) -> np.ndarray:
        """What a crop would leave."""
        window = self._clip(crop)
        return _cut(self._map, window) if self._resizing is None else resize_map(self._map, self.size, window)

    @property
    def _computed_size(self) -> tuple[int, int]:
        return self._map.shape

    def _cut(self, window: Window) -> None:
        self._map = _cut(self._map, window) if self._resizing is None else resize_map(self._map, self.size, window)

    def _apply(self, transform: T.Transform) -> None:
        if self._map.dtype == np.uint8:
            self._map = transform.apply_segmentation(self._map)
        else:  # transforms know bytes only, so a wider integer travels as its bytes, which move together
            planes = np.ascontiguousarray(self._map)[..., None].view(np.uint8)
            self._map = np.ascontiguousarray(transform.apply_segmentation(planes)).view(self._map.dtype)[..., 0]


def contiguous(image: np.ndarray) -> np.ndarray:
    """The same pixels without gaps; a mirrored view costs OpenCV a thirtieth of what it costs NumPy.

    Args:
        image: (H,W,3) uint8.
    """
    if image.strides[1] < 0 and image.size:
        return cv2.flip(np.ascontiguousarray(image[:, ::-1]), 1)
    return np.ascontiguousarray(image)


def _cut(array: np.ndarray, window: Window) -> np.ndarray:
    return array[window.top : window.top + window.height, window.left : window.left + window.width]
