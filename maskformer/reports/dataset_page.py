"""A page about datasets: what is wrong, how much there is of each class, and thumbnails of what is odd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as rle_codec
import torch
from detectron2.data import Metadata
from detectron2.structures import polygons_to_bitmask

from maskformer.data.checks.findings import Finding, class_shares, describe, unit_of
from maskformer.data.checks.inspection import Inspection, Sight, read_values
from maskformer.data.files.reading import read_picture, read_segment_ids
from maskformer.structures import Classes, InputError, PanopticResult

from .pages import picture_url, write_page
from .tasks import ClassTable, draw_panoptic

SIDE = 420  # pixels of a thumbnail's longest side
MOST_SHOWN = 8  # thumbnails of one kind
EXAMPLES = 4
FOREIGN_COLOR = (255, 0, 255)
_WIDENED = 90  # a foreign pixel is drawn as large as this part of a thumbnail's side


@dataclass
class Checked:
    """A dataset that was looked at.

    Attributes:
        name: in the catalogs.
        count: all its images.
        classes: names.
        metadata: as in the catalog.
        seen: those that were looked at.
        findings: what is wrong.
    """

    name: str
    count: int
    classes: list[str]
    metadata: Metadata
    seen: Inspection
    findings: list[Finding]


def write_dataset_page(path: Path, datasets: Sequence[Checked], shared: Sequence[str]) -> None:
    """Write the page.

    Args:
        path: of the HTML file, in a folder that exists.
        datasets: each becomes a part of the page.
        shared: sentences about several datasets.

    Raises:
        InputError: the file cannot be written.
    """
    content = {
        "title": ", ".join(checked.name for checked in datasets),
        "shared": shared,
        "datasets": [_describe(checked) for checked in datasets],
    }
    try:
        write_page(path, "dataset.html", content)
    except OSError as error:
        raise InputError(f"--page {path} cannot be written: {error.strerror or error}.") from error


def _describe(checked: Checked) -> dict[str, Any]:
    """What the template shows of one dataset."""
    seen = checked.seen
    return {
        "name": checked.name,
        "looked_at": len(seen.sights),
        "count": checked.count,
        "unit": unit_of(seen),
        "has_values": "pan_seg_file_name" not in seen.sights[0].record and unit_of(seen) == "pixels",
        "facts": describe(seen, checked.classes),
        "findings": [finding.sentence.split("`") for finding in checked.findings],
        "shares": class_shares(seen, checked.classes),
        "groups": [
            {"title": title, "pictures": [_show(sight, checked) for sight in sights[:MOST_SHOWN]]}
            for title, sights in _group(checked)
            if sights
        ],
    }


def _group(checked: Checked) -> Iterable[tuple[str, list[Sight]]]:
    """Headings, and the images under them."""
    seen = checked.seen
    for number, finding in enumerate(checked.findings, start=1):
        yield f"Problem {number}", finding.sights
    yield "Without annotation", [sight for sight in seen.labelled if not sight.segments]
    by_segments = sorted(seen.labelled, key=lambda sight: -(sight.segments or 0))
    yield "Most segments", by_segments[:EXAMPLES]
    sized = sorted((s for s in seen.sights if s.size), key=lambda sight: np.prod(sight.size or 0))
    if sized and sized[0].size != sized[-1].size:
        yield "Smallest and largest", [sized[0], sized[-1]]
    good = [sight for sight in seen.labelled if sight.segments and not sight.problem]
    spread = np.linspace(0, len(good) - 1, min(EXAMPLES, len(good))).round().astype(int)
    yield "Examples: do labels fit the pictures?", [good[index] for index in spread]


def _show(sight: Sight, checked: Checked) -> dict[str, Any]:
    """A picture beside its label, as far as both can be read, and a caption."""
    size = "cannot be read" if sight.size is None else f"{sight.size[1]} x {sight.size[0]}"
    segments = "" if sight.segments is None else f", {sight.segments} segments"
    pictures = [_try(lambda: _fit(_read_image(sight))), _try(lambda: draw_label(sight, checked))]
    urls = [picture_url(picture) for picture in pictures if picture is not None]
    return {"urls": urls, "name": Path(sight.file_name).name, "path": sight.file_name, "facts": f"{size}{segments}"}


def _try(draw: Callable[[], np.ndarray]) -> np.ndarray | None:
    """A picture, or None of a file that cannot be used, as the sentence about it says."""
    try:
        return draw()
    except InputError:
        return None


def _read_image(sight: Sight) -> np.ndarray:
    return np.asarray(read_picture(sight.file_name, bands=sight.record.get("bands")))


def _fit(pixels: np.ndarray, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    """Bring a picture, small or large, to the size of a thumbnail."""
    scale = SIDE / max(pixels.shape[:2])
    size = [max(1, round(scale * side)) for side in pixels.shape[1::-1]]
    return cv2.resize(pixels, size, interpolation=interpolation)


def draw_label(sight: Sight, checked: Checked) -> np.ndarray:
    """The label over the picture, foreign values marked; alone where it does not fit or is a picture itself."""
    if sight.colors:
        return _fit(np.asarray(read_picture(sight.label_file)), cv2.INTER_NEAREST)
    picture = _fit(_read_image(sight))
    ids, segments = _read_segments(sight, checked)
    foreign = np.isin(ids, [number for number, category in segments.items() if category is None])
    ids, marked = _fit(ids.astype(np.int32), cv2.INTER_NEAREST), _fit(foreign.astype(np.float32)) > 0
    if picture.shape[:2] != ids.shape:
        picture = np.full((*ids.shape, 3), 255, dtype=np.uint8)
    info = [
        {"id": number, "category_id": category, "isthing": unit_of(checked.seen) == "instances"}
        for number, category in segments.items()
        if category is not None
    ]
    drawn = draw_panoptic(picture, PanopticResult(torch.from_numpy(ids), info), _class_table(checked))
    side = 1 + max(ids.shape) // _WIDENED
    drawn[cv2.dilate(marked.astype(np.uint8), np.ones((side, side), np.uint8)) > 0] = FOREIGN_COLOR
    return drawn


def _class_table(checked: Checked) -> ClassTable:
    kind = "thing" if unit_of(checked.seen) == "instances" else "stuff"
    colors = checked.metadata.get(f"{kind}_colors")
    names = tuple(checked.classes)
    fitting = tuple(map(tuple, colors)) if colors is not None and len(colors) == len(names) else None
    return ClassTable.of(Classes(checked.name, names, colors=fitting), len(names))


def _read_segments(sight: Sight, checked: Checked) -> tuple[np.ndarray, dict[int, int | None]]:
    """A label as (H,W) integers, and the class of each number in it that is no void; None: of no class."""
    record, numbering = sight.record, checked.seen.numbering
    class_of = {value: index for index, value in enumerate(numbering.of_classes)}
    if "pan_seg_file_name" in record:
        ids = read_segment_ids(record["pan_seg_file_name"])
        return ids, {info["id"]: class_of.get(info["category_id"]) for info in record["segments_info"]}
    if "sem_seg_file_name" in record:
        values = read_values(sight.label_file, numbering).astype(np.int32)
        present = sight.pixels or dict.fromkeys(np.unique(values).tolist())
        return values, {value: class_of.get(value) for value in present if value not in numbering.ignored}
    assert sight.size is not None
    ids = np.zeros(sight.size, dtype=np.int32)
    categories = {}
    for number, annotation in enumerate(record["annotations"], start=1):
        ids[_decode(annotation["segmentation"], *sight.size)] = number
        categories[number] = class_of.get(annotation["category_id"])
    return ids, categories


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(height,width) bool of polygons or RLE, which were checked."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask([np.asarray(polygon, dtype=np.float64) for polygon in segmentation], height, width)
    is_compressed = not isinstance(segmentation["counts"], list)
    return rle_codec.decode(segmentation if is_compressed else rle_codec.frPyObjects(segmentation, height, width)) > 0
