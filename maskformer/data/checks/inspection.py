"""Looking at every label of a dataset, so that what is wrong is known before a training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata

from maskformer.structures import BadImageError, InputError

from ..files.json_files import check_annotation, check_segments
from ..files.reading import (
    check_declared_size,
    check_same_size,
    read_class_map,
    read_label_map,
    read_picture,
    read_segment_ids,
)
from ..mappers.targets import number_annotated_segments

Record = dict[str, Any]


@dataclass
class Inspection:
    """What was seen in a dataset.

    Attributes:
        num_classes: K.
        ignore_label: the value of pixels without a class.
        images: images looked at.
        problems: one sentence each, about a file.
        empty: images without any annotation.
        pixels: of each class; annotations of each class where there are instances alone.
        values: all label values and category ids seen -> images that hold them.
        most_segments: the largest number of segments in an image, and its file.
    """

    num_classes: int
    ignore_label: int | None = None
    images: int = 0
    problems: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    values: Counter[int] = field(default_factory=Counter)
    most_segments: tuple[int, str] = (0, "")

    @property
    def foreign(self) -> dict[int, int]:
        """Values that are no class and not ignored, with the number of images that hold them."""
        allowed = {self.ignore_label, *range(self.num_classes)}
        return {value: count for value, count in sorted(self.values.items()) if value not in allowed}

    def add(self, record: Record) -> None:
        """Look at one image and its labels; a file that cannot be used becomes a problem."""
        self.images += 1
        try:
            image = np.asarray(read_picture(record["file_name"], bands=record.get("bands")))
            check_declared_size(record, image)
            counts, num_segments = self._count(record, image)
        except InputError as error:
            self.problems.append(str(error))
            return
        self.values.update(counts.keys())
        self.pixels.update({value: count for value, count in counts.items() if 0 <= value < self.num_classes})
        if not num_segments:
            self.empty.append(record["file_name"])
        self.most_segments = max(self.most_segments, (num_segments, record["file_name"]))

    def _count(self, record: Record, image: np.ndarray) -> tuple[dict[int, int], int]:
        """The pixels (instances: annotations) of each value in an image, and its number of segments."""
        if "pan_seg_file_name" in record:
            return _count_panoptic(record, image)
        if "sem_seg_file_name" in record:
            return _count_semantic(record, image, self.ignore_label)
        faults: list[str] = []
        classes: Counter[int] = Counter()
        for annotation in record.get("annotations", []):
            try:
                check_annotation(annotation, f"An annotation of image {record['file_name']}", image.shape[:2])
            except InputError as error:
                faults.append(str(error))
            if isinstance(annotation, dict) and not annotation.get("iscrowd", 0):
                classes[annotation.get("category_id", -1)] += 1
        self.problems += faults[:1]
        return dict(classes), classes.total()


def _count_semantic(record: Record, image: np.ndarray, ignore_label: int | None) -> tuple[dict[int, int], int]:
    """Count the pixels of each value of a label map, and its segments: one a value."""
    label_file, label_values = record["sem_seg_file_name"], record.get("label_values")
    if label_values is None or ignore_label is None:
        label_map = read_class_map(label_file)
    else:
        label_map = read_label_map(label_file, len(label_values.of_classes), ignore_label, label_values)
    check_same_size(image, record["file_name"], label_map, label_file)
    values, counts = np.unique(label_map, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True)), int((values != ignore_label).sum())


def _count_panoptic(record: Record, image: np.ndarray) -> tuple[dict[int, int], int]:
    """Count the pixels of each category of a panoptic map, and its segments."""
    label_file = record["pan_seg_file_name"]
    check_segments(record.get("segments_info"), f"The JSON's entry of {label_file}", BadImageError)
    ids = read_segment_ids(label_file)
    check_same_size(image, record["file_name"], ids, label_file)
    segments = sorted(record["segments_info"], key=lambda segment: segment.get("iscrowd", 0))
    _, areas = number_annotated_segments(ids, segments, label_file)
    counts: Counter[int] = Counter()
    for segment, area in zip(segments, areas.tolist(), strict=True):
        if area == 0 or segment.get("area", area) != area:
            raise BadImageError(
                f"Panoptic label {label_file} has {area} pixels of the segment {segment['id']}, of which the JSON says "
                f"that its area is {segment.get('area')}: prepare both again."
            )
        counts[segment["category_id"]] += area
    return dict(counts), sum(not segment.get("iscrowd", 0) for segment in segments)


def find_unpaired(metadata: Metadata, records: Iterable[Record]) -> list[str]:
    """Find the files of a dataset's two flat folders that its entries leave out, which Detectron2 does in silence.

    Returns:
        One sentence a folder; none where the metadata name no ``image_root`` and ``sem_seg_root``.
    """
    records, found = list(records), []
    if metadata.get("own_key"):  # its loader looks itself
        return []
    for folder_key, file_key, lacks in (
        ("image_root", "file_name", "no label"),
        ("sem_seg_root", "sem_seg_file_name", "no image"),
    ):
        folder = metadata.get(folder_key)
        if folder is None or metadata.get("sem_seg_root") is None:
            continue
        used = {record.get(file_key) for record in records}
        kinds = {Path(file).suffix for file in used if file}
        files = sorted(path for path in Path(folder).glob("*") if path.suffix in kinds and str(path) not in used)
        if files:
            found.append(f"{len(files)} files in {folder} have {lacks} of the same name, first {files[0].name}.")
    return found


def explain_foreign(foreign: dict[int, int], values: Iterable[int], num_classes: int, ignore_label: int | None) -> str:
    """Guess, in one sentence, why labels hold ``foreign`` values, outside the K classes, beside all ``values`` seen."""
    seen = set(values)
    if set(foreign) == {num_classes} and 0 in seen and ignore_label not in seen:
        return (
            f"values are 0..{num_classes} and {ignore_label} never occurs: the labels are not prepared, 0 still means "
            "unlabelled (datasets/README.md)"
        )
    if set(foreign) == {num_classes} and 0 not in seen:
        return "no label is 0: classes seem to be numbered from 1, subtract one"
    if len(foreign) == 1 and (min(foreign) == 0 or max(foreign) > num_classes):
        value = min(foreign)
        return f"one value alone: is {value} the value of pixels without a class? ignore_label is {ignore_label}"
    return "the labels are of another dataset or not prepared (datasets/README.md)"
