"""From an image to its picture and raw ids, in steps that may be taken in different threads and processes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maskformer.structures import Bands, Classes

from . import media, tasks
from .as_dataset import ResultDataset
from .media import Source
from .tasks import ClassTable, Task

Facts = dict[str, Any]  # what the JSON of an image says first


class Segmenter(Protocol):
    """What is asked of a model here; ``maskformer.predictor.Predictor`` has it."""

    bands: Bands | None

    @property
    def classes(self) -> Classes | None:
        """What it knows of its classes."""

    def example(self, rgb: np.ndarray) -> dict[str, Any]:
        """What the model is given of an image."""

    def bucket(self, example: dict[str, Any]) -> Hashable:
        """Only examples of one may be in one batch."""

    def outputs(self, examples: list[dict[str, Any]], *, task: str, threshold: float | None) -> list[dict[str, Any]]:
        """The model's results of a batch."""


@dataclass(frozen=True)
class Prepared:
    """An image that is read: (height,width,3) uint8 RGB, and what the model is given of it."""

    image: np.ndarray
    example: dict[str, Any]
    facts: Facts


@dataclass(frozen=True)
class Seen:
    """An image that is segmented, with its result as ``tasks.pack`` gives it."""

    image: np.ndarray
    packed: Any
    facts: Facts


@dataclass(frozen=True)
class Annotator:
    """Reads and segments images.

    Attributes:
        predictor: the model.
        task: how to read, draw and encode its output.
        classes: K names and colours.
        facts: what the JSON says about model and dataset.
        threshold: as ``Predictor`` takes it.
        pins: whether the device copies from pinned memory by itself.
    """

    predictor: Segmenter
    task: Task
    classes: ClassTable
    facts: Facts
    threshold: float | None = None
    pins: bool = False

    def facts_of(self, source: Source) -> Facts:
        """What the JSON of one image says first, and by which another one in its place is told."""
        return {"image": source.name, "image_digest": media.digest(source.name), "task": self.task.name, **self.facts}

    def read(self, source: Source) -> np.ndarray:
        """An image as (height,width,3) uint8 RGB."""
        return media.read_picture(source.name, self.predictor.bands)

    def prepare(self, image: np.ndarray, facts: Facts | None = None) -> Prepared:
        """Resize an image for the model."""
        example = self.predictor.example(image)
        if self.pins:
            example["image"] = example["image"].pin_memory()
        return Prepared(image, example, facts or {})

    def bucket(self, prepared: Prepared) -> Hashable:
        """Only images of one may be in one batch."""
        return self.predictor.bucket(prepared.example)

    def segment(self, batch: list[Prepared]) -> list[dict[str, Any]]:
        """The model's output of each image."""
        examples = [prepared.example for prepared in batch]
        return self.predictor.outputs(examples, task=self.task.name, threshold=self.threshold)

    def fetch(self, prepared: Prepared, output: dict[str, Any]) -> Seen:
        """The result of an image, on the host."""
        return Seen(prepared.image, tasks.pack(self.task.read(output)), prepared.facts)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """What the model sees, drawn: (height,width,3) uint8 RGB."""
        prepared = self.prepare(image)
        (output,) = self.segment([prepared])
        return draw_frame(None, self.fetch(prepared, output), self.task, self.classes)


def draw_frame(frame: object, seen: Seen, task: Task, classes: ClassTable) -> np.ndarray:  # noqa: ARG001
    """An image with its result: (height,width,3) uint8 RGB."""
    return task.draw(seen.image, tasks.unpack(seen.packed), classes)


def write_drawing(work: tuple[Source, Path], seen: Seen, task: Task, classes: ClassTable) -> bool:
    """Write the picture and the ids of an image, and last the JSON that says that they are complete."""
    result = tasks.unpack(seen.packed)
    picture, ids = task.draw(seen.image, result, classes), task.encode(result, classes)
    media.write_result(work[1], picture, ids, seen.facts, classes)
    return True


def add_labels(work: tuple[Source, Path], seen: Seen, dataset: ResultDataset) -> bool:
    """Add an image with its result to a dataset."""
    ids = dataset.task.encode(tasks.unpack(seen.packed), dataset.classes)
    dataset.add(work[0].name, work[1], ids, seen.facts)
    return True
