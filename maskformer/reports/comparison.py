"""Small pictures of an image, its label and its prediction, drawn quickly: an evaluation draws hundreds of them.

All pictures are (height,width,3) uint8 RGB.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskformer.data.datasets.classes import read_classes
from maskformer.structures import PanopticResult

from .tasks import OPACITY, TASKS, ClassTable

LONGEST_SIDE = 640  # pixels; larger pictures are made smaller
MOST_LABELS = 15  # names in a picture: of the largest segments
LABEL_SIZE = 13  # pixels
_STEP = 4  # pixels: how finely the widest place of a segment is looked for


class Comparison:
    """Draws image, label and prediction of a dataset's images in one size and the same colours.

    Args:
        dataset_name: says what the classes are called.
        num_classes: K of the model.
        image_format: INPUT.FORMAT, in which images are loaded: "BGR" or "RGB"; others are shown as they are.
    """

    def __init__(self, dataset_name: str, *, num_classes: int, image_format: str):
        self._classes = ClassTable.of(read_classes(dataset_name, num_classes), num_classes)
        self._colors = np.array(self._classes.colors) * 255
        self._is_reversed = image_format == "BGR"

    def __call__(self, example: dict[str, Any], truth: dict[str, Any], output: dict[str, Any]) -> dict[str, np.ndarray]:
        """The three pictures: "picture", "truth" and "prediction".

        Args:
            example: what the loader gave, with the ``image`` (C,h,w), of any size.
            truth: the label in the form of a model's output.
            output: the model's, of the same height and width.
        """
        task = next(task for task in TASKS.values() if task.key in truth)
        segments = [_lay_out(task.read(each)) for each in (truth, output)]
        height, width = segments[0][0].shape
        picture = self._read_image(example["image"], height, width)
        drawn = [self._paint(picture, segment_map, classes) for segment_map, classes in segments]
        return {"picture": picture, "truth": drawn[0], "prediction": drawn[1]}

    def _read_image(self, image: Tensor, height: int, width: int) -> np.ndarray:
        pixels = image.cpu().permute(1, 2, 0).numpy()
        pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, axis=2)
        pixels = pixels[..., ::-1] if self._is_reversed else pixels
        if pixels.dtype != np.uint8:
            low, high = float(pixels.min()), float(pixels.max())
            pixels = ((pixels - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
        return cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_AREA)

    def _paint(self, picture: np.ndarray, segment_map: np.ndarray, classes: list[int]) -> np.ndarray:
        """Colour each segment by its class, with outlines and names; 0 is left as it is."""
        is_known = [False, *(0 <= index < len(self._classes) for index in classes)]
        colors = np.array(
            [self._colors[index] if known else (0, 0, 0) for index, known in zip([-1, *classes], is_known)]
        )
        painted = cv2.addWeighted(picture, 1 - OPACITY, colors.astype(np.uint8).take(segment_map, axis=0), OPACITY, 0)
        painted = cv2.copyTo(picture, (~np.array(is_known)).astype(np.uint8).take(segment_map), painted)
        edges = np.zeros(segment_map.shape, dtype=bool)
        edges[1:] = segment_map[1:] != segment_map[:-1]
        edges[:, 1:] |= segment_map[:, 1:] != segment_map[:, :-1]
        painted[edges] = 255
        coarse = np.ascontiguousarray(segment_map[::_STEP, ::_STEP])
        areas = np.bincount(coarse.ravel(), minlength=len(is_known)) * is_known
        for segment in np.argsort(-areas, kind="stable")[:MOST_LABELS].tolist():
            if areas[segment]:
                self._write_name(painted, coarse == segment, self._classes.label(classes[segment - 1]))
        return painted

    def _write_name(self, painted: np.ndarray, coarse_mask: np.ndarray, name: str) -> None:
        """Write a name where its segment is widest, unless that is narrower than a letter."""
        framed = np.pad(coarse_mask, 1).astype(np.uint8)  # the picture's border is an edge too
        depth = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
        if depth.max() * _STEP < LABEL_SIZE / 2:
            return
        y, x = (int(place) * _STEP for place in np.unravel_index(depth.argmax(), depth.shape))
        label = _draw_name(name)[: painted.shape[0], : painted.shape[1]]
        height, width = label.shape[:2]
        top = min(max(0, y - height // 2), painted.shape[0] - height)
        left = min(max(0, x - width // 2), painted.shape[1] - width)
        area = painted[top : top + height, left : left + width]
        np.copyto(area, label, where=label.any(axis=2, keepdims=True))


def _lay_out(result: Any) -> tuple[np.ndarray, list[int]]:
    """A small map of the segments of a result, 0 where there is none, and the class of each from 1."""
    if isinstance(result, np.ndarray):
        classes = _shrink(result).astype(np.int64)
        present = np.flatnonzero(np.bincount(classes.ravel()))
        number = np.zeros(present[-1] + 1, dtype=np.uint16)
        number[present] = np.arange(1, len(present) + 1)
        return number.take(classes), present.tolist()
    if isinstance(result, PanopticResult):
        ids = _shrink(result.segment_map.numpy())
        segment_map = np.zeros(ids.shape, dtype=np.uint16)
        for index, segment in enumerate(result.segments_info):
            segment_map[ids == segment["id"]] = index + 1
        return segment_map, [segment["category_id"] for segment in result.segments_info]
    masks = _shrink(result.pred_masks.numpy().astype(bool))
    segment_map = np.zeros(masks.shape[1:], dtype=np.uint16)
    for index in result.scores.argsort().tolist():  # the best comes last and lies on top
        segment_map[masks[index]] = index + 1
    return segment_map, result.pred_classes.tolist()


def _shrink(values: np.ndarray) -> np.ndarray:
    """(..,height,width) values at fewer pixels, so that the longer side is at most ``LONGEST_SIDE``."""
    sides = np.array(values.shape[-2:])
    smaller = np.maximum(1, np.round(sides * min(1.0, LONGEST_SIDE / max(sides)))).astype(int)
    rows, columns = (((np.arange(few) + 0.5) * side / few).astype(int) for few, side in zip(smaller, sides))
    return values.take(rows, axis=-2).take(columns, axis=-1)


@cache
def _draw_name(name: str) -> np.ndarray:
    """(height,width,3) uint8 white letters with a dark edge, on 0, in Matplotlib's font, which knows most scripts."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), LABEL_SIZE)
    left, top, right, bottom = font.getbbox(name, stroke_width=1)
    label = Image.new("RGB", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(label).text((-left, -top), name, "white", font, stroke_width=1, stroke_fill=(1, 1, 1))
    return np.asarray(label)
