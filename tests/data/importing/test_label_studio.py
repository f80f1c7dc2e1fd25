"""Label Studio's JSON (https://labelstud.io/guide/task_format), with results as the pages of its tags have them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imported import Imported, draw, losses

from maskformer.data.importing.label_studio import decode_brush

Import = Callable[..., Imported]


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask as Label Studio packs it: RGBA, runs of one value with 3, 4, 8 or 16 bits for their length."""
    values = np.repeat((mask * 255).astype(np.uint8).ravel(), 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))
    edges = [0, *(np.flatnonzero(np.diff(values.astype(int))) + 1).tolist(), len(values)]
    for start, end in itertools.pairwise(edges):
        for first in range(start, end, 2**16):
            count = min(end - first, 2**16)
            choice = next(i for i, length in enumerate((3, 4, 8, 16)) if count <= 2**length)
            if count == 4:  # now and then one by one
                bits += f"0{choice:02b}{count - 1:0{(3, 4, 8, 16)[choice]}b}" + count * f"{values[first]:08b}"
            else:
                bits += f"1{choice:02b}{count - 1:0{(3, 4, 8, 16)[choice]}b}{values[first]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def result(kind: str, value: dict, number: str = "", **more: Any) -> dict:
    fields = {
        "original_width": 80,
        "original_height": 60,
        "image_rotation": 0,
        "from_name": "label",
        "to_name": "image",
    }
    return {**fields, "value": value, "id": number or str(id(value)), "type": kind, "origin": "manual", **more}


def task(number: int, image: str, *annotations: list[dict] | dict) -> dict:
    done = [a if isinstance(a, dict) else {"id": 1, "was_cancelled": False, "result": a} for a in annotations]
    return {"id": number, "annotations": done, "predictions": [], "data": {"image": image}, "project": 1}


POLYGON = result("polygonlabels", {"points": [[25, 50], [50, 50], [50, 75]], "closed": True, "polygonlabels": ["Car"]})


def write(source: Path, *tasks: dict, name: str = "project-1-at-2024-01-01.json") -> None:
    (source / name).write_text(json.dumps(tasks))


def test_shapes_in_percent_become_instances(source: Path, import_from: Import) -> None:
    draw(source / "images/0a1b2c3d-street.jpg")
    box = {"x": 50, "y": 50, "width": 25, "height": 10}
    write(
        source,
        task(
            7,
            "/data/upload/1/0a1b2c3d-street.jpg",
            [
                POLYGON,
                result("rectanglelabels", {**box, "rotation": 0, "rectanglelabels": ["Road"]}),
                result("rectanglelabels", {**box, "rotation": 90, "rectanglelabels": ["Road"]}),
                result("ellipselabels", {"x": 20, "y": 20, "radiusX": 10, "radiusY": 10, "ellipselabels": ["Car"]}),
                result("polygon", {"points": [[0, 0], [10, 0], [10, 10]]}, "r"),
                result("labels", {"points": [[0, 0], [10, 0], [10, 10]], "labels": ["Bus"]}, "r"),
                result("keypointlabels", {"x": 3, "y": 4, "width": 0.5, "keypointlabels": ["Car"]}),
                result("choices", {"choices": ["sunny"]}),
                {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
                result("polygonlabels", {"points": [[1, 2], [3, "x"]], "polygonlabels": ["Car"]}),
                result("polygon", {"points": [[0, 0], [10, 0], [10, 10]]}),
                result("polygonlabels", {**POLYGON["value"]}, image_rotation=90),
            ],
        ),
    )
    imported = import_from("label-studio")
    found = imported.objects()["0a1b2c3d-street.jpg"]
    assert [name for name, _ in found] == ["Car", "Road", "Road", "Car", "Bus"]
    areas = [int(mask.sum()) for _, mask in found]
    assert areas[1:3] == [120, 120]
    assert areas[0] == pytest.approx(150, abs=15) and areas[3] == pytest.approx(math.pi * 48, rel=0.05)
    assert areas[4] == pytest.approx(24, abs=6)
    rows, columns = np.nonzero(found[2][1])  # turned clockwise about its upper left corner
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 49, 34, 39)
    lost = losses(imported.printed)
    assert lost["shapes that enclose nothing (points, lines)"] == 1
    assert lost["choices, texts, relations and other results without a shape"] == 2
    assert lost["shapes whose numbers make no sense"] == 1
    assert lost["shapes of a class that is not in the list"] == 1
    assert lost["shapes of pictures that were turned in the editor"] == 1


def test_brushes_become_label_maps(source: Path, import_from: Import) -> None:
    draw(source / "a.jpg")
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 5:40, 3:50] = masks[1, 30:50, 40:77] = True
    masks[0, ::7, ::5] = True
    results = [
        result("brushlabels", {"format": "rle", "rle": encode_brush(mask), "brushlabels": [name]})
        for mask, name in zip(masks, ("sky", "tree"), strict=True)
    ]
    broken = result("brushlabels", {"format": "rle", "rle": encode_brush(masks[0])[:50], "brushlabels": ["sky"]})
    write(source, task(1, "/data/local-files/?d=pictures%2Fa.jpg", [*results, broken]))
    imported = import_from("label-studio")
    labels = imported.label_map()
    assert imported.content["OWN"]["garden"]["classes"] == ["background", "sky", "tree"]
    np.testing.assert_array_equal(labels, np.where(masks[1], 2, np.where(masks[0], 1, 0)))
    lost = losses(imported.printed)
    assert lost["pixels in several objects, of which the last drawn has them"] == (masks[0] & masks[1]).sum()
    assert lost["shapes whose numbers make no sense"] == 1
    instances = import_from("label-studio", "--as", "instances", target="instances")
    np.testing.assert_array_equal(instances.objects()["a.jpg"][0][1], masks[0])


def test_decoded_brush_is_what_was_packed() -> None:
    mask = np.random.default_rng(0).random((13, 7)) < 0.5
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), (13, 7)), mask * 255)
    for content in ([], [0, 0, 0, 1], encode_brush(mask)[:-2], encode_brush(mask[:5])):
        with pytest.raises(ValueError, match="run lengths"):
            decode_brush(content, (13, 7))


def test_last_annotation_that_is_not_cancelled_counts(source: Path, import_from: Import) -> None:
    for name in ("a", "b c", "d"):
        draw(source / f"{name}.jpg")
    other = result("polygonlabels", {"points": [[0, 0], [99, 0], [99, 99]], "polygonlabels": ["Other"]})
    cancelled = {"id": 3, "was_cancelled": True, "result": [other]}
    write(
        source,
        task(1, "/data/upload/12345678-a.jpg", [other], [POLYGON], cancelled),
        task(2, "s3://bucket/folder/b%20c.jpg", cancelled),
        task(3, "https://example.org/x/d.jpg?token=1", [POLYGON, POLYGON]),
        task(4, "/data/upload/e.jpg", [POLYGON]),
        task(5, "../../secret.jpg", [POLYGON]),
    )
    draw(source.parent / "secret.jpg")
    imported = import_from("label-studio", "--val-share", 0)
    found = imported.objects()
    assert {name: [each[0] for each in objects] for name, objects in found.items()} == {
        "a.jpg": ["Car"], "b c.jpg": [], "d.jpg": ["Car"],
    }  # fmt: skip
    lost = losses(imported.printed)
    assert lost == {"annotations of a picture besides its last one": 2, "pictures that are missing": 2}


@pytest.mark.parametrize("content", [[], {}, [{"image": "a.jpg", "label": []}], "x", [1]])
def test_another_type_of_export_is_refused(source: Path, import_from: Import, content: Any) -> None:
    draw(source / "a.jpg")
    (source / "min.json").write_text(json.dumps(content))
    imported = import_from("label-studio")
    assert imported.code == 2 and "JSON" in imported.printed
