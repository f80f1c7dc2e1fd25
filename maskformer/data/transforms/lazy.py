"""Pictures and maps under a series of Detectron2's transforms, of which a resizing waits for the crop that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import cv2
import numpy as np
from detectron2.data import transforms as T
from PIL import Image

from maskformer.kernels import import_pixel_loops

from ..files.counting import read_only
from .resampling import CompiledResizing, Window, find_resizing, resize_map, resize_picture

_TYPES_THAT_FLIP = (np.uint8, np.int16, np.int32)  # in OpenCV, at a thirtieth of NumPy's time


@dataclass(frozen=True)
class _Resizing:
    """A resizing that is drawn and not yet computed, and the window of it that later crops left."""

    transform: T.ResizeTransform
    window: Window

    @property
    def new_size(self) -> tuple[int, int]:
        """(height, width) of the whole resized image."""
        return self.transform.new_h, self.transform.new_w

    def crop(self, window: Window) -> _Resizing:
        """Leave a window of the window."""
        top, left = self.window.top + window.top, self.window.left + window.left
        return _Resizing(self.transform, Window(top, left, window.height, window.width))


class _Movable:
    """What pictures and maps share: the order of transforms."""

    _resizing: _Resizing | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) after all transforms so far."""
        if self._resizing is None:
            return self._computed_size
        return self._resizing.window.height, self._resizing.window.width

    def transform(self, transform: T.Transform) -> None:
        """Apply a transform, or a list of them, in place."""
        if isinstance(transform, T.TransformList):
            for step in transform.transforms:
                self.transform(step)
        elif type(transform) is T.ResizeTransform:
            self._settle()
            assert self.size == (transform.h, transform.w), f"{self.size} is not {(transform.h, transform.w)}"
            if self.size != (transform.new_h, transform.new_w):
                self._resizing = _Resizing(transform, Window(0, 0, transform.new_h, transform.new_w))
        elif type(transform) is T.CropTransform:
            window = self._clip(transform)
            if self._resizing is None:
                self._cut(window)
            else:
                self._resizing = self._resizing.crop(window)
        elif type(transform) is not T.NoOpTransform:
            self._settle()
            self._apply(transform)

    def _settle(self) -> None:
        """Compute the resizing that waits, if one does."""
        if self._resizing is not None:
            self._resize(self._resizing)
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

    def _resize(self, resizing: _Resizing) -> None:
        raise NotImplementedError

    def _apply(self, transform: T.Transform) -> None:
        raise NotImplementedError


class Picture(_Movable):
    """An image in colours, in the form that the last transform left: Pillow's, an array, or packed.

    A packed picture, (H,W) uint32, has red + 256 green + 65536 blue in each pixel, or blue and red exchanged for "BGR".

    Args:
        image: (H,W,3) uint8 or a picture of mode RGB.
        image_format: "RGB", or "BGR" for a picture of Pillow's whose ``array`` shall be so.
    """

    def __init__(self, image: np.ndarray | Image.Image, image_format: str = "RGB"):
        self._image = image
        self._is_bgr = image_format == "BGR"

    @property
    def array(self) -> np.ndarray:
        """(H,W,3) uint8 after all transforms so far."""
        self._settle()
        self._image = self._to_array(self._image)
        return self._image

    def write_planes(self, planes: np.ndarray) -> None:
        """Write the image, after all transforms so far, into the upper left of (3,height,width) uint8."""
        loops = import_pixel_loops()
        compiled = None if self._resizing is None else self._find_resizing(self._resizing)
        if loops is not None and compiled is not None:  # in bands that the cache still has
            for top, band in compiled.bands(self._pack(compiled.source)):
                loops.split_channels(read_only(band), planes, top, False)
            return
        self._settle()
        if loops is not None and _is_packed(self._image):
            mirrored = _is_mirrored(self._image)
            pixels = read_only(self._image[:, ::-1] if mirrored else self._image)
            loops.split_channels(pixels, planes, 0, mirrored)
            return
        height, width = self.size
        if height and width:
            cv2.split(contiguous(self.array), [plane[:height, :width] for plane in planes])

    @property
    def _computed_size(self) -> tuple[int, int]:
        if isinstance(self._image, Image.Image):
            return self._image.height, self._image.width
        return self._image.shape[:2]

    def _cut(self, window: Window) -> None:
        image = self._image
        self._image = image.crop(window.corners) if isinstance(image, Image.Image) else image[window.slices]

    def _resize(self, resizing: _Resizing) -> None:
        image, new_size, window = self._image, resizing.new_size, resizing.window
        compiled = self._find_resizing(resizing)
        if compiled is not None:
            self._image = compiled(self._pack(compiled.source))
        elif isinstance(image, Image.Image):
            self._image = resize_picture(image, new_size, window, resizing.transform.interp)
        elif _is_packed(image) or _is_of_bytes(image):
            picture = Image.fromarray(contiguous(self._to_array(image)))
            self._image = np.asarray(resize_picture(picture, new_size, window, resizing.transform.interp))
        else:
            self._image = resizing.transform.apply_image(image)[window.slices]

    def _find_resizing(self, resizing: _Resizing) -> CompiledResizing | None:
        image = self._image
        if isinstance(image, np.ndarray) and not (_is_packed(image) or _is_of_bytes(image)):
            return None
        return find_resizing(self._computed_size, resizing.new_size, resizing.window, resizing.transform.interp)

    def _apply(self, transform: T.Transform) -> None:
        if type(transform) is T.HFlipTransform and isinstance(self._image, Image.Image):
            self._image = self._image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        elif type(transform) is T.HFlipTransform and _is_packed(self._image):
            self._image = self._image[:, ::-1]
        else:
            self._image = transform.apply_image(self.array)

    def _pack(self, window: Window) -> np.ndarray:
        """A window of the image, packed and contiguous."""
        if isinstance(self._image, Image.Image):
            part = self._image if window.covers(self._computed_size) else self._image.crop(window.corners)
            pixels = np.frombuffer(part.tobytes("raw", "BGRX" if self._is_bgr else "RGBX"), np.uint32)
            return pixels.reshape(part.height, part.width)
        pixels = contiguous(self._image[window.slices])
        return pixels if _is_packed(pixels) else cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA).view(np.uint32)[..., 0]

    def _to_array(self, image: Image.Image | np.ndarray) -> np.ndarray:
        if isinstance(image, Image.Image):
            pixels = np.asarray(image)
            return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if self._is_bgr else pixels
        if not _is_packed(image):
            return image
        values = contiguous(image).view(np.uint8).reshape(*image.shape, 4)
        return cv2.cvtColor(values, cv2.COLOR_RGBA2RGB) if image.size else values[..., :3]


def _is_packed(image: Image.Image | np.ndarray) -> TypeGuard[np.ndarray]:
    return isinstance(image, np.ndarray) and image.dtype == np.uint32


def _is_of_bytes(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.shape[2:] == (3,)


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
        if self._resizing is None:
            return self._map[window.slices]
        return resize_map(self._map, self._resizing.new_size, self._resizing.crop(window).window)

    @property
    def _computed_size(self) -> tuple[int, int]:
        return self._map.shape

    def _cut(self, window: Window) -> None:
        self._map = self._map[window.slices]

    def _resize(self, resizing: _Resizing) -> None:
        self._map = resize_map(self._map, resizing.new_size, resizing.window)

    def _apply(self, transform: T.Transform) -> None:
        if type(transform) is T.HFlipTransform and self._map.size and self._map.dtype in _TYPES_THAT_FLIP:
            self._map = cv2.flip(np.ascontiguousarray(self._map), 1)
        elif self._map.dtype == np.uint8:
            self._map = transform.apply_segmentation(self._map)
        else:  # transforms know bytes only, so a wider integer travels as its bytes, which move together
            planes = np.ascontiguousarray(self._map)[..., None].view(np.uint8)
            self._map = np.ascontiguousarray(transform.apply_segmentation(planes)).view(self._map.dtype)[..., 0]


def contiguous(image: np.ndarray) -> np.ndarray:
    """The same pixels without gaps; mirrored views are OpenCV's work, see above.

    Args:
        image: (H,W,3) uint8, or packed.
    """
    if not _is_mirrored(image):
        return np.ascontiguousarray(image)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    return cv2.flip(mirrored.view(np.int32), 1).view(np.uint32) if _is_packed(image) else cv2.flip(mirrored, 1)


def _is_mirrored(image: np.ndarray) -> bool:
    return image.strides[1] < 0 and image.size > 0
