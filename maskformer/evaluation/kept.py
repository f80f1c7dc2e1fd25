"""Pictures of the worst and best images of an evaluation, kept while it goes, so that another process finds them."""

from __future__ import annotations

import bisect
import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .results import VERSION, write_json

logger = logging.getLogger(__name__)

KEPT = 20  # worst images, and as many best ones
JPEG_QUALITY = 75
LAYERS = ("picture", "truth", "prediction")

# (entry of the dataset, its label in the form of a model's output, the model's output) -> RGB pictures by layer
Draw = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Mapping[str, np.ndarray]]


class KeptPictures:
    """The pictures of those images that are among the worst or best of this process so far.

    Processes share the folder, where each has its own worst and best: so those of all are there in the end, also of a
    process that was killed. Another machine's files, if it has a disk of its own, are not.

    Args:
        folder: where the files are until the evaluation ends.
        draw: makes the pictures; where it cannot, that costs a warning, and no more are kept.
    """

    def __init__(self, folder: Path, draw: Draw):
        self._folder = folder
        self._draw: Draw | None = draw
        self._ranked: list[tuple[float, int, int]] = []  # see ``_rank``

    def offer(
        self,
        index: int,
        score: float,
        example: dict[str, Any],
        truth: Callable[[dict[str, Any]], dict[str, Any]],
        output: dict[str, Any],
    ) -> None:
        """Draw an image that is among the worst or best so far, and forget those that no longer are.

        Args:
            index: of the image in the dataset.
            score: in percent; nan: it has none, and is not drawn.
            example: entry of the dataset.
            truth: gives its label in the form of a model's output; an empty one is not drawn.
            output: the model's.
        """
        if self._draw is None or not math.isfinite(score):
            return
        rank = _rank(score, index)
        bisect.insort(self._ranked, rank)
        left = self._ranked.pop(KEPT) if len(self._ranked) > 2 * KEPT else None  # neither among the worst nor the best
        if left == rank:
            return
        try:
            if label := truth(example):
                self._save(index, self._draw(example, label, output))
            if left is not None:
                for path in self._paths(left[-1]).values():
                    path.unlink(missing_ok=True)
        except Exception as error:  # whatever it is, scores are worth more than pictures
            logger.warning(
                "The picture of %s cannot be kept (%s: %s): the evaluation goes on without pictures of the worst and "
                "best images.", example["file_name"], type(error).__name__, error,
            )  # fmt: skip
            self._draw = None

    def _paths(self, index: int) -> dict[str, Path]:
        return {layer: self._folder / f"{index:04d}_{layer}.jpg" for layer in LAYERS}

    def _save(self, index: int, pictures: Mapping[str, np.ndarray]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for layer, path in self._paths(index).items():
            Image.fromarray(pictures[layer]).save(path, quality=JPEG_QUALITY)

    def publish(self, images: Sequence[tuple[int, Mapping[str, Any]]], target: Path) -> None:
        """Put the worst and best of all processes into a folder, with ``pictures.json``, in place of earlier ones.

        No image is both: of less than twice ``KEPT`` images, the worse half is the worst.

        Args:
            images: index, and "file_name" and "score" of each.
            target: of the dataset's results.
        """
        file_names = {index: image["file_name"] for index, image in images}
        there = sorted(
            _rank(image["score"], index)
            for index, image in images
            if math.isfinite(image["score"]) and all(path.exists() for path in self._paths(index).values())
        )
        half = (len(there) + 1) // 2
        parts = {"worst": there[:half][:KEPT], "best": there[half:][::-1][:KEPT]}
        try:
            (target / "pictures.json").unlink(missing_ok=True)
            shutil.rmtree(target / "pictures", ignore_errors=True)
            (target / "pictures").mkdir(parents=True)
            rows = {
                name: [self._move(score, index, file_names[index], target) for score, _, index in part]
                for name, part in parts.items()
            }
            write_json(target / "pictures.json", {"version": VERSION, **rows})
        except OSError as error:
            logger.warning("Pictures cannot be written to %s: %s.", target, error.strerror or error)

    def _move(self, score: float, index: int, file_name: str, target: Path) -> dict[str, Any]:
        paths = self._paths(index)
        for path in paths.values():
            os.replace(path, target / "pictures" / path.name)
        return {
            "file_name": file_name,
            "score": score,
            **{layer: f"pictures/{path.name}" for layer, path in paths.items()},
        }


def _rank(score: float, index: int) -> tuple[float, int, int]:
    """By score; equal ones in an order of chance, so that of many equal ones not each is drawn as the last so far."""
    return score, zlib.crc32(b"%d" % index), index
