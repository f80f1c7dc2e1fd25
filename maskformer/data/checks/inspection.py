"""Looking at every label of a dataset, so that what is wrong is known before a training."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata

from maskformer.structures import BadImageError, InputError, LabelValues

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
from .guesses import ValueCount

Record = dict[str, Any]


@dataclass
class Sight:
    """What was seen of one image.

    Attributes:
        record: its entry in the dataset.
        size: (height, width); None: it cannot be read.
        pixels: of each value of its label; of each category, where there are segments or instances (annotations).
        inner: where a label map has foreign values, the pixels of each value whose four neighbours have it too.
        segments: that a model is to learn of it; None: its labels cannot be used.
        colors: of a label that is a colour picture, how often each colour (red, green, blue) occurs.
        problem: its kind, a key of ``findings.PROBLEMS``, and a sentence about the file.
    """

    record: Record
    size: tuple[int, int] | None = None
    pixels: dict[int, int] = field(default_factory=dict)
    inner: dict[int, int] = field(default_factory=dict)
    segments: int | None = None
    colors: dict[tuple[int, ...], ValueCount] = field(default_factory=dict)
    problem: tuple[str, str] | None = None

    @property
    def file_name(self) -> str:
        """The image's file."""
        return self.record["file_name"]

    @property
    def label_file(self) -> str:
        """The label's file; the image's, where a JSON has the labels."""
        return self.record.get("pan_seg_file_name") or self.record.get("sem_seg_file_name") or self.file_name


@dataclass
class Inspection:
    """What was seen in a dataset.

    Attributes:
        numbering: which values are classes and which are ignored.
        sights: one an image, in the order in which they were added.
    """

    numbering: LabelValues
    sights: list[Sight] = field(default_factory=list)

    @classmethod
    def of(cls, record: Record, num_classes: int, ignore_label: int) -> Inspection:
        """Begin with a dataset of K classes, of which ``record`` is an entry."""
        values = None if "pan_seg_file_name" in record else record.get("label_values")
        return cls(values or LabelValues(tuple(range(num_classes)), (ignore_label,)))

    def add(self, record: Record) -> None:
        """Look at one image and its labels; a file that cannot be used becomes a problem."""
        sight = Sight(record)
        self.sights.append(sight)
        try:
            with _problem("image"):
                image = np.asarray(read_picture(record["file_name"], bands=record.get("bands")))
            sight.size = image.shape[0], image.shape[1]
            with _problem("declared"):
                check_declared_size(record, image)
            if "pan_seg_file_name" in record:
                _look_at_panoptic(sight, image)
            elif "sem_seg_file_name" in record:
                _look_at_semantic(sight, image, self.numbering)
            else:
                _look_at_instances(sight, image)
        except _Problem as problem:
            sight.problem = problem.kind, str(problem)

    @property
    def values(self) -> dict[int, ValueCount]:
        """All label values and category ids seen."""
        counts: defaultdict[int, ValueCount] = defaultdict(ValueCount)
        for sight in self.sights:
            for value, pixels in sight.pixels.items():
                counts[value].add(ValueCount(pixels, sight.inner.get(value, 0), 1, sight.label_file))
        return dict(sorted(counts.items()))

    @property
    def foreign(self) -> dict[int, ValueCount]:
        """Values that are no class and not ignored."""
        allowed = {*self.numbering.of_classes, *self.numbering.ignored}
        return {value: count for value, count in self.values.items() if value not in allowed}

    @property
    def labelled(self) -> list[Sight]:
        """Images whose labels could be counted."""
        return [sight for sight in self.sights if sight.segments is not None]


class _Problem(Exception):
    def __init__(self, kind: str, sentence: str):
        super().__init__(sentence)
        self.kind = kind


@contextmanager
def _problem(kind: str) -> Iterator[None]:
    """Say of which kind a mistake in a file is."""
    try:
        yield
    except InputError as error:
        raise _Problem(kind, str(error)) from error


def _look_at_semantic(sight: Sight, image: np.ndarray, numbering: LabelValues) -> None:
    """Count the pixels of each value of a label map, and its segments: one a class."""
    file = sight.label_file
    try:
        with _problem("label"):
            label_map = read_values(file, numbering)
    except _Problem:
        known = {*numbering.colors, *numbering.ignored_colors}
        sight.colors = {color: count for color, count in _count_colors(file).items() if color not in known}
        raise
    with _problem("size"):
        check_same_size(image, sight.file_name, label_map, file)
    sight.pixels = count_values(label_map)
    if sight.pixels.keys() - {*numbering.of_classes, *numbering.ignored}:
        sight.inner = count_values(label_map[_is_inner(label_map)])
    sight.segments = len(sight.pixels.keys() - set(numbering.ignored))


def read_values(label_file: str, numbering: LabelValues) -> np.ndarray:
    """The values (H,W) of a label map, whether they are right or not; of colours, those of their classes.

    Raises:
        BadImageError: the file cannot be read, has several channels that are no colours, or a colour that is no class.
    """
    if not numbering.colors:
        return read_class_map(label_file)
    num_classes = len(numbering.of_classes)
    try:
        classes = read_label_map(label_file, num_classes, num_classes, numbering)
    except BadImageError as error:
        if numbering.by_palette:
            raise
        try:
            return read_class_map(label_file)
        except BadImageError:
            raise error from None
    return np.array([*numbering.of_classes, *(numbering.ignored[:1] or [-1])])[classes]


def count_values(integers: np.ndarray) -> dict[int, int]:
    """How often each value occurs in an array of integers or bool."""
    if integers.dtype in (np.bool_, np.uint8, np.uint16):
        counts = np.bincount(integers.ravel().astype(np.intp, copy=False))
        values = np.flatnonzero(counts)
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(integers, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _is_inner(label_map: np.ndarray) -> np.ndarray:
    """(H,W) bool: whether a pixel's four neighbours have its value; beyond the border, everything has."""
    inner = np.ones(label_map.shape, dtype=bool)
    rows, columns = label_map[1:] == label_map[:-1], label_map[:, 1:] == label_map[:, :-1]
    inner[1:] &= rows
    inner[:-1] &= rows
    inner[:, 1:] &= columns
    inner[:, :-1] &= columns
    return inner


def _count_colors(label_file: str) -> dict[tuple[int, ...], ValueCount]:
    """How often each colour of a label with several channels occurs; nothing of what is no picture either."""
    try:
        label = np.asarray(read_picture(label_file)).astype(np.int32)
    except InputError:
        return {}
    numbers = label @ np.array([65536, 256, 1], dtype=np.int32)
    inner = count_values(numbers[_is_inner(numbers)])
    return {
        (number >> 16, number >> 8 & 255, number & 255): ValueCount(pixels, inner.get(number, 0), 1, label_file)
        for number, pixels in count_values(numbers).items()
    }


def _look_at_panoptic(sight: Sight, image: np.ndarray) -> None:
    """Count the pixels of each category of a panoptic map, and its segments."""
    record, label_file = sight.record, sight.record["pan_seg_file_name"]
    with _problem("label"):
        check_segments(record.get("segments_info"), f"The JSON's entry of {label_file}", BadImageError)
        ids = read_segment_ids(label_file)
    with _problem("size"):
        check_same_size(image, record["file_name"], ids, label_file)
    segments = sorted(record["segments_info"], key=lambda segment: segment.get("iscrowd", 0))
    counts: Counter[int] = Counter()
    with _problem("segments"):
        _, areas = number_annotated_segments(ids, segments, label_file)
        for segment, area in zip(segments, areas.tolist(), strict=True):
            if area == 0 or segment.get("area", area) != area:
                raise BadImageError(
                    f"Panoptic label {label_file} has {area} pixels of the segment {segment['id']}, of which the JSON "
                    f"says that its area is {segment.get('area')}: prepare both again."
                )
            counts[segment["category_id"]] += area
    sight.pixels = dict(counts)
    sight.segments = sum(not segment.get("iscrowd", 0) for segment in segments)


def _look_at_instances(sight: Sight, image: np.ndarray) -> None:
    """Count the annotations of each category that are no crowds; those with a mistake too, for they name a category."""
    with _problem("label"):
        annotations = list(sight.record.get("annotations", []))
    classes = [a.get("category_id", -1) for a in annotations if isinstance(a, dict) and not a.get("iscrowd", 0)]
    sight.pixels, sight.segments = dict(Counter(classes)), len(classes)
    for annotation in annotations:
        with _problem("annotation"):
            check_annotation(annotation, f"An annotation of image {sight.file_name}", image.shape[:2])


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


def find_copies(files: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Find the files that are, byte by byte, among others too: (file, other), each file once.

    Only files whose size another one has are read; members of archives are left out.
    """
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for other in filter(os.path.isfile, others):
        by_size[os.path.getsize(other)].append(other)
    digests = functools.cache(lambda file: hashlib.blake2b(Path(file).read_bytes()).digest())
    copies = []
    for file in filter(os.path.isfile, files):
        alike = by_size.get(os.path.getsize(file), ())
        copies += [(file, other) for other in alike if digests(file) == digests(other)][:1]
    return copies
