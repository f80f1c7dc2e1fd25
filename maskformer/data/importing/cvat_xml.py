"""CVAT for images 1.1, the XML of https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat.

``annotations.xml`` holds the labels in ``meta`` and an ``image`` for each picture, with ``polygon``, ``box``,
``ellipse``, ``mask`` and others. Shapes are drawn by ``z_order``; ``group_id`` joins parts of an object. CVAT for video
1.1 has tracks instead, between whose key frames CVAT interpolates: its export for images has every frame.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.structures import InputError

from .outlines import BAD, NO_AREA, Shapes, box, ellipse, from_bitmap, from_polygon, from_runs, turn
from .source import Annotated, Entry, Losses, Pictures, Size, Source, check_size, entry_of_file
from .yolo_seg import MISSING

ATTRIBUTES = "attributes of shapes, and tags of pictures"
OTHER = "cuboids and skeletons"
_SHAPES = ("polygon", "box", "ellipse", "mask", "polyline", "points", "cuboid", "skeleton")


def read(root: Path, main: Path | None, losses: Losses) -> Source:
    """Read ``annotations.xml``; the subsets of a project are splits.

    Raises:
        InputError: defusedxml is missing, or the file is, or it is of another form.
    """
    candidates = sorted(root.glob("*.xml"))
    file = main or (candidates[0] if len(candidates) == 1 else root / "annotations.xml")
    pictures, names = Pictures(root), []
    splits: dict[str, list[Entry]] = {}
    for element in _elements(file):
        if element.tag == "track":
            raise InputError(
                f"{file} holds tracks (CVAT for video 1.1); expected CVAT for images 1.1, in which CVAT writes the "
                "shapes of every frame: export the task in that format."
            )
        if element.tag == "label" and (name := element.findtext("name")):
            names.append(name)
        elif element.tag == "image":
            called, subset = element.get("name", ""), element.get("subset", "train")
            found = pictures.find(f"images/{subset}/{called}") or pictures.find(called)
            if found is None:
                losses.add(MISSING, called)
                continue
            shapes = [_plain(child) for child in element]
            declared = (element.get("height"), element.get("width"))
            annotate = partial(_annotate, called, shapes, declared, losses)
            splits.setdefault(subset.lower() if subset != "default" else "train", []).append(
                entry_of_file(pictures, found, annotate)
            )
    if not splits:
        raise InputError(f"{file} names no picture that is in {root}; export the task with its images.")
    return Source(tuple(names), splits)


def _elements(file: Path) -> Any:
    """The elements of an XML file, each when it is complete; those of pictures are emptied afterwards."""
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import ParseError, iterparse
    except ImportError as error:
        raise InputError("cvat-xml needs defusedxml: pip install defusedxml.") from error
    depth_of_label = 0
    try:
        with open(file, "rb") as content:
            for event, element in iterparse(content, events=("start", "end")):
                depth_of_label += (1 if event == "start" else -1) * (element.tag == "labels")
                if event == "start" or (element.tag == "label" and not depth_of_label):
                    continue
                yield element
                if element.tag in ("image", "track"):
                    element.clear()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; name the XML file as SOURCE.") from error
    except (ParseError, DefusedXmlException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = "it declares entities" if isinstance(error, DefusedXmlException) else error
        raise InputError(f"{file} is no XML that CVAT writes: {reason}; export it again.") from error


def _plain(element: Any) -> tuple[str, dict[str, str], int]:
    return element.tag, dict(element.attrib), len(element.findall("attribute"))


def _annotate(
    called: str, elements: list[tuple[str, dict[str, str], int]], declared: Any, losses: Losses, size: Size
) -> list[Annotated]:
    height, width = (int(side) if str(side).isdigit() else None for side in declared)
    check_size(size, (height, width), called)
    shapes = Shapes(size, called, losses)
    in_order = sorted((each for each in elements if each[0] in _SHAPES), key=lambda each: _order(each[1]))
    losses.add(ATTRIBUTES, called, sum(count for _, _, count in elements) + sum(tag == "tag" for tag, _, _ in elements))
    for tag, given, _ in in_order:
        if tag in ("polyline", "points"):
            shapes.lose(NO_AREA)
        elif tag in ("cuboid", "skeleton"):
            shapes.lose(OTHER)
        else:
            try:
                group = given.get("group_id", "0")
                shapes.add(given["label"], _segmentation(tag, given, size), group if group != "0" else None)
            except (KeyError, TypeError, ValueError, OverflowError):
                shapes.lose(BAD)
    return shapes.objects()


def _order(given: dict[str, str]) -> int:
    try:
        return int(given.get("z_order", "0"))
    except ValueError:
        return 0


def _segmentation(tag: str, given: dict[str, str], size: Size) -> Any:
    degrees = float(given.get("rotation", 0))
    if tag == "mask":
        left, top, width, height = (int(float(given[key])) for key in ("left", "top", "width", "height"))
        if width * height > size[0] * size[1]:
            raise ValueError("a mask larger than the picture")
        return from_bitmap(from_runs(map(int, given["rle"].split(",")), (height, width)), left, top, size)
    if tag == "ellipse":
        centre, radii = ([float(given[key]) for key in keys] for keys in (("cx", "cy"), ("rx", "ry")))
        return from_polygon(ellipse(centre, radii, degrees), size)
    if tag == "box":
        corners = box(*(float(given[key]) for key in ("xtl", "ytl", "xbr", "ybr")))
        return from_polygon(turn(corners, corners.mean(axis=0), degrees), size)
    return from_polygon(np.array([pair.split(",") for pair in given["points"].split(";")], dtype=np.float64), size)
