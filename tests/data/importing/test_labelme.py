"""labelme's JSON (https://github.com/wkentaro/labelme, examples/instance_segmentation and examples/primitives)."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imported import Imported, draw, losses
from PIL import Image

Import = Callable[..., Imported]


def shape(label: str, points: list, kind: str = "polygon", **more: Any) -> dict:
    fields = {"label": label, "points": points, "group_id": None, "description": "", "shape_type": kind, "flags": {}}
    return {**fields, "mask": None, **more}


def write(path: Path, shapes: list[dict], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{path.stem}.jpg", "imageData": None}
    path.write_text(json.dumps({**content, "imageHeight": 60, "imageWidth": 80, **more}))


def png(array: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


SQUARE = [[10, 10], [30, 10], [30, 20], [10, 20]]


def test_shapes_with_an_area_become_instances_and_others_are_counted(source: Path, import_from: Import) -> None:
    draw(source / "a.jpg")
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    write(
        source / "a.json",
        [
            shape("cat", SQUARE),
            shape("dog", [[50, 40], [40, 30]], "rectangle"),
            shape("ball", [[60, 20], [60, 30]], "circle"),
            shape("cat", [[5, 40], [10, 43]], "mask", mask=png(mask)),
            shape("cat", [[0, 0], [5, 5]], "line"),
            shape("cat", [[0, 0], [5, 5], [9, 0]], "linestrip"),
            shape("cat", [[3, 3]], "point"),
            shape("cat", [[3, 3], [4, 4], [5, 9]], "points"),
            shape("cat", [[3, 3], [4, 4]]),
            shape("cat", [["x", 3], [4, 4], [5, 5]]),
            shape("cat", SQUARE, "mask", mask="no base64!"),
            {"label": "cat"},
        ],
        flags={"blurred": True, "dark": False},
    )
    result = import_from("labelme")
    assert result.code == 0
    assert result.content["OWN"]["garden"]["classes"] == ["ball", "cat", "dog"]
    (cat, square), (dog, box), (ball, circle), (_, drawn) = result.objects()["a.jpg"]
    assert (cat, dog, ball) == ("cat", "dog", "ball")
    assert (square.sum(), box.sum()) == (200, 100)
    assert circle.sum() == pytest.approx(math.pi * 100, rel=0.03)
    rows, columns = np.nonzero(drawn)
    assert (rows.min(), rows.max(), columns.min(), columns.max(), len(rows)) == (41, 42, 7, 9, 6)
    lost = losses(result.printed)
    assert lost["shapes that enclose nothing (points, lines)"] == 4
    assert lost["shapes without a pixel in the picture"] == 1
    assert lost["shapes whose numbers make no sense"] == 3
    assert lost["flags that are set, of shapes and pictures"] == 1


def test_a_group_is_one_object(source: Path, import_from: Import) -> None:
    draw(source / "a.jpg")
    far = [[x + 30, y + 30] for x, y in SQUARE]
    shapes = [shape("cat", SQUARE, group_id=1), shape("dog", far, group_id=1), shape("cat", far, group_id=1)]
    write(source / "a.json", shapes)
    found = import_from("labelme").objects()["a.jpg"]
    assert [(name, mask.sum()) for name, mask in found] == [("cat", 400), ("dog", 200)]


def test_pictures_elsewhere_or_within_the_json(source: Path, import_from: Import) -> None:
    draw(source / "images/ä b.JPG")
    write(source / "train/x.json", [shape("cat", SQUARE)], imagePath="..\\images\\ä b.JPG")
    data = base64.b64encode(draw(source.parent / "other.png").read_bytes()).decode()
    write(source / "val/y.json", [shape("cat", SQUARE)], imagePath="C:\\me\\y.png", imageData=data)
    write(source / "val/z.json", [shape("cat", SQUARE)], imagePath="../../other.png")
    result = import_from("labelme")
    assert list(result.objects()) == ["ä b.JPG"]
    assert list(result.objects("val")) == ["y.png"]
    assert losses(result.printed) == {"pictures that are missing": 1}  # no name leads out of the source


def test_labels_to_ignore_and_the_background(source: Path, import_from: Import) -> None:
    draw(source / "a.jpg")
    ignored = shape("__ignore__", [[10, 10], [20, 10], [20, 20], [10, 20]])
    background = shape("_background_", [[25, 10], [30, 10], [30, 20], [25, 20]])
    write(source / "a.json", [shape("cat", SQUARE), ignored, shape("dog", SQUARE[:1]), background])
    (source / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    result = import_from("labelme", "--as", "labels")
    labels = result.label_map()
    assert result.content["OWN"]["garden"]["classes"] == ["_background_", "dog", "cat"]
    assert [int((labels == value).sum()) for value in (0, 1, 2, 255)] == [4650, 0, 50, 100]
    assert losses(result.printed)["pixels in several objects, of which the last drawn has them"] == 150
    instances = import_from("labelme", target="instances")
    assert len(instances.objects()["a.jpg"]) == 1
    assert losses(instances.printed)["regions of background, or to ignore, which are no instances"] == 2
    assert instances.content["OWN"]["instances"]["classes"] == ["dog", "cat"]


def test_bad_files_are_left_out_and_named(source: Path, import_from: Import) -> None:
    for name in "abcd":
        draw(source / f"{name}.jpg")
        write(source / f"{name}.json", [shape("cat", SQUARE)])
    (source / "b.json").write_text('{"shapes": [')
    write(source / "c.json", [shape("cat", SQUARE)], imageHeight=61)
    (source / "d.jpg").write_bytes((source / "d.jpg").read_bytes()[:900])
    (source / "other.json").write_text("[1]")
    result = import_from("labelme", "--val-share", 0)
    assert result.code == 1
    assert list(result.objects()) == ["a.jpg"]
    left_out = [line for line in result.printed.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 2 and "c.json" in left_out[0] and "61" in left_out[0] and "d.jpg" in left_out[1]
    assert losses(result.printed)["files of annotations that cannot be read"] == 1
    assert "b.json" in result.printed


def test_a_mask_that_would_fill_the_memory_is_no_object(
    source: Path, import_from: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(source / "a.jpg")
    bomb = png(np.zeros((1000, 1000), np.uint8))
    write(source / "a.json", [shape("cat", [[0, 0], [9, 9]], "mask", mask=bomb), shape("cat", SQUARE)])
    monkeypatch.setenv("MASKFORMER_MAX_IMAGE_PIXELS", "100000")
    result = import_from("labelme")
    assert len(result.objects()["a.jpg"]) == 1
    assert losses(result.printed) == {"shapes whose numbers make no sense": 1}


def test_what_is_no_file_or_has_an_odd_name_keeps_nobody_waiting(source: Path, import_from: Import) -> None:
    os.mkfifo(source / "pipe.json")
    os.mkfifo(source / "pipe.png")
    draw(source / "50% grau #1.jpg")
    write(source / "50% grau #1.json", [shape("Gräser\x1b[31m", SQUARE)])
    draw(source / "a%20b.jpg")
    write(source / "a%20b.json", [shape("Gräser\x1b[31m", SQUARE)])
    result = import_from("labelme", "--val-share", 0)
    assert sorted(result.objects()) == ["50% grau #1.jpg", "a%20b.jpg"]
    assert result.content["OWN"]["garden"]["classes"] == ["Gräser\\x1b[31m"]
    assert losses(result.printed)["files of annotations that cannot be read"] == 1
