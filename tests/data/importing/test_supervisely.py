"""Supervisely's project: https://docs.supervisely.com/customization-and-integration/00_ann_format_navi."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imported import Imported, draw, losses
from PIL import Image

Import = Callable[..., Imported]
META = {
    "classes": [
        {"title": "person", "shape": "bitmap", "color": "#FF0000", "geometry_config": {}},
        {"title": "bike", "shape": "polygon", "color": "#00FF00", "geometry_config": {}},
    ],
    "tags": [{"name": "situated", "value_type": "any_string", "color": "#FFFFFF"}],
}


def pack(picture: Image.Image, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, format="PNG", **options)
    return base64.b64encode(zlib.compress(file.getvalue())).decode()


def bitmap(mask: np.ndarray) -> str:
    """As Supervisely's SDK packs it: a palette of black and white, black being transparent."""
    picture = Image.fromarray(mask.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    return pack(picture, transparency=0, optimize=False)


def figure(title: str, kind: str, **more: Any) -> dict:
    return {"id": 1, "classTitle": title, "geometryType": kind, "tags": [], "labelerLogin": "me", **more}


def points(exterior: list, *interior: list) -> dict:
    return {"points": {"exterior": exterior, "interior": list(interior)}}


def write(source: Path, dataset: str, name: str, objects: list[dict] | None, size: tuple[int, int] = (60, 80)) -> None:
    (source / "meta.json").write_text(json.dumps(META))
    draw(source / dataset / "img" / name)
    if objects is not None:
        file = source / dataset / "ann" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        content = {"description": "", "tags": [], "size": dict(zip(("height", "width"), size, strict=True))}
        file.write_text(json.dumps({**content, "objects": objects}))


MASK = np.array([[0, 1, 1], [1, 0, 1]], bool)
SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]


def test_figures_become_instances_with_their_holes(source: Path, import_from: Import) -> None:
    hole = [[15, 15], [25, 15], [25, 25], [15, 25]]
    alpha = np.zeros((2, 3, 4), np.uint8)
    alpha[..., 3] = MASK * 200
    write(
        source,
        "ds0",
        "a b.jpg",
        [
            figure("person", "bitmap", bitmap={"data": bitmap(MASK), "origin": [40, 20]}, tags=[{"name": "situated"}]),
            figure("person", "alpha_mask", bitmap={"data": pack(Image.fromarray(alpha)), "origin": [78, 59]}),
            figure("bike", "polygon", **points(SQUARE, hole)),
            figure("bike", "rectangle", **points([[50, 5], [59, 9]])),
            figure("bike", "line", **points([[1, 1], [5, 5]])),
            figure("bike", "point", **points([[1, 1]])),
            figure("bike", "graph", nodes={}),
            figure("plane", "polygon", **points(SQUARE)),
            figure("bike", "polygon", **points([[1, 1], [None, 2], [3, 3]])),
            figure("person", "bitmap", bitmap={"data": "AAAA", "origin": [0, 0]}),
        ],
    )
    result = import_from("supervisely")
    assert result.content["OWN"]["garden"]["classes"] == ["person", "bike"]
    (_, mask), (_, cut), (_, ring), (name, box) = result.objects("ds0")["a b.jpg"]
    np.testing.assert_array_equal(mask[20:22, 40:43], MASK)
    assert mask.sum() == 4
    assert cut.sum() == 1 and cut[59, 79]  # the rest is outside of the picture
    assert ring.sum() == 300 and not ring[20, 20] and ring[12, 12]
    assert name == "bike" and box[5:10, 50:60].all() and box.sum() == 50
    lost = losses(result.printed)
    assert lost["shapes that enclose nothing (points, lines)"] == 2
    assert lost["cuboids, graphs and other shapes"] == 1
    assert lost["shapes of a class that is not in the list"] == 1
    assert lost["shapes whose numbers make no sense"] == 2
    assert lost["tags of pictures and objects"] == 1


def test_datasets_are_splits_and_share_out_a_validation(source: Path, import_from: Import) -> None:
    polygon = [figure("bike", "polygon", **points(SQUARE))]
    for number in range(10):
        write(source, "ds 1", f"{number}.jpg", polygon)
    for number in range(3):
        write(source, "images", f"{number}.jpg", polygon)
    write(source, "images/datasets/inner", "1.png", None)
    write(source, "ds 1", "10.jpg", polygon, size=(60, 81))
    (source / "ds 1/ann/gone.jpg.json").write_text("{}")
    result = import_from("supervisely", "--val-share", 0.2)
    counts = {split: len(result.records(split)) for split in ("ds_1", "images_split", "images_inner", "val")}
    assert counts == {"ds_1": 8, "images_split": 2, "images_inner": 1, "val": 3}
    assert result.code == 1 and "81" in result.printed
    lost = losses(result.printed)
    assert lost["pictures without an annotation, taken to be empty"] == lost["pictures that are missing"] == 1
    again = import_from("supervisely", "--val-share", 0.2, target="again")
    assert again.content["TRAIN"] == ["again_ds_1", "again_images_inner", "again_images_split"]
    assert (result.folder / "val.json").read_bytes() == (again.folder / "val.json").read_bytes()


def test_train_and_val_are_what_they_are_called(source: Path, import_from: Import) -> None:
    for dataset in ("val", "train"):
        write(source, dataset, "a.jpg", [figure("bike", "polygon", **points(SQUARE))])
    content = import_from("supervisely").content
    assert (content["TRAIN"], content["TEST"]) == (["garden_train"], ["garden_val"])


def test_a_bomb_is_no_object(source: Path, import_from: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskformer.data.importing.supervisely._MOST_BYTES", 1000)
    bomb = base64.b64encode(zlib.compress(bytes(10_000_000))).decode()
    objects = [
        figure("bike", "polygon", **points(SQUARE)),
        figure("bike", "bitmap", bitmap={"data": bomb, "origin": [0, 0]}),
    ]
    write(source, "train", "a.jpg", objects)
    result = import_from("supervisely")
    assert len(result.objects()["a.jpg"]) == 1
    assert losses(result.printed)["shapes whose numbers make no sense"] == 1


@pytest.mark.parametrize("meta", [None, "{", "[]", '{"classes": []}', '{"classes": [1]}'])
def test_a_project_without_classes_is_refused(source: Path, import_from: Import, meta: str | None) -> None:
    write(source, "train", "a.jpg", [])
    (source / "meta.json").write_text(meta or "")
    assert import_from("supervisely").code == 2
