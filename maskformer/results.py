"""What a model sees in one picture: Detectron2's dictionary, and the same as segments, label map, drawing and COCO."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec

from maskformer.reports import media
from maskformer.reports.tasks import OPACITY, ClassTable, Task
from maskformer.structures import Classes, InputError

NO_CLASS = -1  # in a label map


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a picture.

    Attributes:
        label: name of its class.
        class_id: number of its class, 0..K-1.
        score: 0..1: of an instance, its score; of a panoptic segment, the probability of its class; None: semantic
            results have none.
        is_thing: whether its class is counted one by one; None: that is not known.
        mask: (height,width) bool.
        area: pixels of the mask.
        box: (x0, y0, x1, y1) around the mask, in pixels from the top left; x1 and y1 are the first that are outside.
    """

    label: str
    class_id: int
    score: float | None
    is_thing: bool | None
    mask: np.ndarray
    area: int
    box: tuple[int, int, int, int]


class Result(dict[str, Any]):
    """Results of one picture; as a dictionary, they are what the model gave (``sem_seg``, ``panoptic_seg``, ...).

    Args:
        output: the model's results.
        image: (height,width,3) uint8 RGB, the picture.
        task: which of the results ``segments`` and the rest show, and how to read it.
        known: what the model knows of its classes.
        num_classes: K.
        name: of the picture's file; "": it has none.
    """

    def __init__(
        self,
        output: Mapping[str, Any],
        *,
        image: np.ndarray,
        task: Task,
        known: Classes | None,
        num_classes: int,
        name: str = "",
    ):
        super().__init__(output)
        self.image = image
        self.name = name
        self._task = task
        self._known = known
        self._table = ClassTable.of(known, num_classes)

    @property
    def task(self) -> str:
        """What ``segments`` shows: "panoptic", "instance" or "semantic"."""
        return self._task.name

    @property
    def classes(self) -> tuple[str, ...]:
        """The K names."""
        return self._table.names

    @cached_property
    def segments(self) -> list[Segment]:
        """Panoptic segments in the model's order, instances with the best score first, or each class that occurs."""
        things = None if self._known is None else self._known.things
        found = []
        for class_id, score, mask in self._masks():
            area = int(mask.sum())
            if area:
                is_thing = None if things is None else class_id in things
                found.append(Segment(self.classes[class_id], class_id, score, is_thing, mask, area, _box(mask)))
        return found

    def _masks(self) -> Iterator[tuple[int, float | None, np.ndarray]]:
        """Class, score and mask of each segment."""
        result = self._read()
        if self.task == "panoptic":
            segment_map = result.segment_map.numpy()
            for info in result.segments_info:
                yield info["category_id"], info.get("score"), segment_map == info["id"]
        elif self.task == "instance":
            masks = result.pred_masks.numpy().astype(bool)
            for index in result.scores.argsort(descending=True, stable=True).tolist():
                yield int(result.pred_classes[index]), float(result.scores[index]), masks[index]
        else:
            for class_id in np.unique(result).tolist():
                if 0 <= class_id < len(self.classes):
                    yield class_id, None, result == class_id

    @cached_property
    def label_map(self) -> np.ndarray:
        """(height,width) int32: the class of each pixel, -1 for none; of instances, the one with the best score."""
        labels = np.full(self.image_size, NO_CLASS, dtype=np.int32)
        for segment in reversed(self.segments):
            labels[segment.mask] = segment.class_id
        return labels

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the results, which is the picture's unless another was asked for."""
        result = self._read()
        return tuple(result.image_size if self.task == "instance" else getattr(result, "segment_map", result).shape)

    def draw(self, *, scale: int = 1, opacity: float = OPACITY) -> Image.Image:
        """The picture with its segments filled, outlined and named.

        Args:
            scale: size of the drawing over size of the results.
            opacity: of the filled areas, 0..1.

        Raises:
            InputError: the scale is not positive, or the opacity outside 0..1.
        """
        if not (scale > 0 and 0 <= opacity <= 1):
            raise InputError(f"scale is {scale} and opacity {opacity}; expected a positive number, and 0..1.")
        drawn = self._task.draw(self._shown(), self._read(), self._table, scale=scale, opacity=opacity)
        return Image.fromarray(drawn)

    def save(self, folder: str | Path, name: str | None = None) -> Path:
        """Write the drawing, ``NAME_ids.png`` with raw ids and ``NAME_ids.json``, which says what they mean.

        Args:
            folder: created where it is missing.
            name: of the files; by default that of the picture's file, else "picture", with a number behind it where
                another picture's result has it.

        Returns:
            The drawing's path.

        Raises:
            InputError: it cannot be written, or a name leads out of the folder.
        """
        folder, facts = Path(folder).expanduser(), {"image": self.name, "task": self.task}
        if name is None:
            path = self._free_path(folder)
        elif not isinstance(name, str) or not name or Path(name).name != name:
            raise InputError(f"name is {name!r}; expected a file's name, without a folder.")
        else:
            path = folder / f"{name}.jpg"
        ids = self._task.encode(self._read(), self._table)
        media.write_result(path, np.asarray(self.draw()), ids, facts, self._table)
        return path

    def _free_path(self, folder: Path) -> Path:
        """A drawing's name that no other picture's result has; arrays are always others."""
        stem = Path(self.name).stem or "picture"
        ends = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
        paths = (folder / f"{stem}{end}.jpg" for end in ends)
        facts = {"image": self.name or None}
        return next(path for path in paths if not path.exists() or media.has_ids(path, facts))

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """Each segment as an annotation in COCO's format.

        Args:
            image_id: of the picture.

        Returns:
            ``image_id``, ``category_id`` (the dataset's own where the model knows it, else the class's number),
            ``category_name``, ``segmentation`` (run lengths), ``bbox`` (x, y, width, height), ``area``, ``iscrowd`` 0
            and, where there is one, ``score``; all of it plain, for JSON.
        """
        ids = None if self._known is None else self._known.ids
        annotations = []
        for segment in self.segments:
            rle = rle_codec.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
            x0, y0, x1, y1 = segment.box
            annotation = {
                "image_id": image_id,
                "category_id": segment.class_id if ids is None else ids[segment.class_id],
                "category_name": segment.label,
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": segment.area,
                "iscrowd": 0,
            }
            annotations.append(annotation if segment.score is None else {**annotation, "score": segment.score})
        return annotations

    def _read(self) -> Any:
        return self._task.read(self)

    def _shown(self) -> np.ndarray:
        """The picture in the size of the results."""
        height, width = self.image_size
        if self.image.shape[:2] == (height, width):
            return self.image
        return np.asarray(Image.fromarray(self.image).resize((width, height)))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
