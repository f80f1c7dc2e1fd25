"""Label Studio's JSON, of https://labelstud.io/guide/export and https://labelstud.io/guide/task_format.

A task has the address of its picture in ``data`` and annotations, of which the last that is not cancelled counts.
Coordinates are percents of width and height. A brush is Label Studio's own run lengths of the RGBA picture that it drew
on, of which alpha is the mask (https://labelstud.io/tags/brushlabels; written by the npm package @thi.ng/rle-pack).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from maskformer.structures import InputError

from .outlines import BAD, NO_AREA, UNKNOWN_CLASS, Shapes, box, ellipse, from_bitmap, from_polygon, turn
from .source import Annotated, Losses, Pictures, Size, Source, check_size, entry_of_file, read_json_file
from .yolo_seg import MISSING

OTHERS = "annotations of a picture besides its last one"
TURNED = "shapes of pictures that were turned in the editor"
NO_SHAPE = "choices, texts, relations and other results without a shape"
_GEOMETRY = ("points", "rle", "width", "radiusX", "x")


def read(root: Path, main: Path | None, losses: Losses) -> Source:
    """Read an export of the type JSON, beside the pictures.

    Raises:
        InputError: there is none, or it is of another type.
    """
    file, tasks = _find_tasks(root, main)
    pictures, entries, names, kinds = Pictures(root), [], [], set()
    for task in tasks:
        results = _results(task, losses)
        found = next(filter(None, (_find(pictures, value) for value in task.get("data", {}).values())), None)
        if found is None:
            losses.add(MISSING, f"task {task.get('id')}: {next(iter(task.get('data', {}).values()), None)}")
            continue
        labels = _labels(results)
        names += [name for name in labels.values() if name]
        kinds |= {"rle" in _value(result) for result in results if any(key in _value(result) for key in _GEOMETRY)}
        where = f"{file.name}, task {task.get('id')}"
        entries.append(entry_of_file(pictures, found, partial(_annotate, where, results, labels, losses), where))
    if not entries:
        raise InputError(f"No picture that {file} names is in {root}; expected them beside it, downloaded or exported.")
    return Source(tuple(dict.fromkeys(names)), {"train": entries}, form="labels" if kinds == {True} else "instances")


def _find_tasks(root: Path, main: Path | None) -> tuple[Path, list[dict[str, Any]]]:
    for path in [main] if main else sorted(root.glob("*.json")):
        content = read_json_file(path)
        tasks = [task for task in content if _is_task(task)] if isinstance(content, list) else []
        if tasks:
            return path, tasks
    raise InputError(
        f"{main or root} has no export of Label Studio of the type JSON, a list of tasks with data and annotations "
        "(JSON-MIN and CSV leave things out): export it as JSON."
    )


def _is_task(task: Any) -> bool:
    return isinstance(task, dict) and isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list)


def _results(task: dict[str, Any], losses: Losses) -> list[dict[str, Any]]:
    """The results of the last annotation that is not cancelled."""
    valid = [each for each in task["annotations"] if isinstance(each, dict) and not each.get("was_cancelled")]
    losses.add(OTHERS, f"task {task.get('id')}", max(len(task["annotations"]) - 1, 0))
    results = valid[-1].get("result", []) if valid else []
    return [result for result in results if isinstance(result, dict)]


def _find(pictures: Pictures, value: Any) -> str | None:
    """The picture of an address: uploaded (with eight digits before its name), in a local or cloud storage."""
    if not isinstance(value, str):
        return None
    parts = urlsplit(value.replace("\\", "/").replace("#", "%23"))
    path = parse_qs(parts.query).get("d", [parts.path])[0]
    name = path.rpartition("/")[2]
    return pictures.find(path) or pictures.find(name) or pictures.find(re.sub(r"^[0-9a-f]{8}-", "", name))


def _value(result: dict[str, Any]) -> dict[str, Any]:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _labels(results: list[dict[str, Any]]) -> dict[Any, str | None]:
    """The class of each region, by its id: a region may have its shape and its label in two results."""
    labels: dict[Any, str | None] = {}
    for index, result in enumerate(results):
        lists = [given for key, given in _value(result).items() if key.endswith("labels") and isinstance(given, list)]
        name = next((str(given[0]) for given in lists if given), None)
        labels[result.get("id", index)] = name or labels.get(result.get("id", index))
    return labels


def _annotate(
    where: str, results: list[dict[str, Any]], labels: dict[Any, str | None], losses: Losses, size: Size
) -> list[Annotated]:
    shapes, done = Shapes(size, where, losses), set()
    for index, result in enumerate(results):
        value, region = _value(result), result.get("id", index)
        if not any(key in value for key in _GEOMETRY):
            shapes.lose(NO_SHAPE)
        elif region not in done:
            done.add(region)
            _add(shapes, result, value, labels[region])
    return shapes.objects()


def _add(shapes: Shapes, result: dict[str, Any], value: dict[str, Any], name: str | None) -> None:
    check_size(shapes.size, (result.get("original_height"), result.get("original_width")), shapes.where)
    if result.get("image_rotation"):
        return shapes.lose(TURNED)
    if name is None:
        return shapes.lose(UNKNOWN_CLASS)
    try:
        segmentation = _segmentation(value, shapes.size)
    except (KeyError, TypeError, ValueError, OverflowError):
        return shapes.lose(BAD)
    return shapes.lose(NO_AREA) if segmentation is None else shapes.add(name, segmentation)


def _segmentation(value: dict[str, Any], size: Size) -> Any:
    """COCO's segmentation of a result; None: it has no area."""
    scale = np.array([size[1], size[0]]) / 100
    degrees = float(value.get("rotation", 0))
    if "rle" in value:
        return from_bitmap(decode_brush(value["rle"], size), 0, 0, size)
    if "points" in value:
        return from_polygon(np.asarray(value["points"], dtype=np.float64).reshape(-1, 2) * scale, size)
    corner = np.array([value["x"], value["y"]], dtype=np.float64) * scale
    if "radiusX" in value:
        radii = np.array([value["radiusX"], value["radiusY"]], dtype=np.float64) * scale
        return from_polygon(ellipse(corner, radii, degrees), size)
    if "height" not in value:  # a key point
        return None
    other = corner + np.array([value["width"], value["height"]], dtype=np.float64) * scale
    return from_polygon(turn(box(*corner, *other), corner, degrees), size)


def decode_brush(content: list[int], size: Size) -> np.ndarray:
    """The mask (H,W) of Label Studio's run lengths.

    They are a stream of bits: 32 for the number of values, 5 for the bits of a value, 4 x 4 for four lengths, each less
    one; then blocks, each of a bit that tells a run from single values, 2 bits that choose one of the lengths, the
    count less one in as many bits, and the value, or values.

    Args:
        content: bytes.
        size: (height, width).

    Raises:
        ValueError: they are no run lengths of an RGBA picture of this size.
    """
    stream = _Bits(bytes(content))
    total = stream.read(32)
    if total != 4 * size[0] * size[1]:
        raise ValueError("run lengths of another size")
    bits = stream.read(5) + 1
    lengths = [stream.read(4) + 1 for _ in range(4)]
    values, place = np.zeros(total, dtype=np.uint8), 0
    while place < total:
        is_run = stream.read(1)
        end = min(place + stream.read(lengths[stream.read(2)]) + 1, total)
        values[place:end] = stream.read(bits) if is_run else [stream.read(bits) for _ in range(end - place)]
        place = end
    return values.reshape(*size, 4)[:, :, 3]


class _Bits:
    """Numbers out of a stream of bits, the highest bit first."""

    def __init__(self, content: bytes):
        self._content, self._place = content, 0

    def read(self, count: int) -> int:
        """The next number of so many bits."""
        start, end = self._place, self._place + count
        if end > 8 * len(self._content):
            raise ValueError("run lengths that end too early")
        self._place = end
        last = -(-end // 8)
        return int.from_bytes(self._content[start // 8 : last], "big") >> (8 * last - end) & ((1 << count) - 1)
