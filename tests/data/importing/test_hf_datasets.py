"""Datasets of Hugging Face's library, written by the library itself: https://huggingface.co/docs/datasets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imported import Imported, draw, losses
from PIL import Image

datasets = pytest.importorskip("datasets")

Import = Callable[..., Imported]
MASK = np.zeros((60, 80), np.uint8)
MASK[10:20, 10:30] = 3
MASK[30:40] = 255
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 20.0, 10.0, 20.0]


def semantic(path: Path, masks: list[np.ndarray]) -> Any:
    pictures = [{"bytes": draw(path / f"{i}.png").read_bytes(), "path": f"{i}.png"} for i in range(len(masks))]
    columns = {"pixel_values": pictures, "label": [Image.fromarray(mask) for mask in masks]}
    features = datasets.Features({"pixel_values": datasets.Image(), "label": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features)


def test_masks_of_a_saved_dataset_stay_as_they_are(source: Path, tmp_path: Path, import_from: Import) -> None:
    splits = {"train": semantic(tmp_path, [MASK, MASK // 2]), "validation": semantic(tmp_path, [MASK])}
    datasets.DatasetDict(splits).save_to_disk(source)
    result = import_from("hf-datasets")
    block = result.content["OWN"]["garden"]
    assert (block["classes"], block["ids"]) == (["class 0", "class 1", "class 3", "class 127"], [0, 1, 3, 127])
    np.testing.assert_array_equal(result.label_map(), MASK)
    assert result.content["TEST"] == ["garden_validation"]
    np.testing.assert_array_equal(result.label_map(0, "validation"), MASK)
    assert "nothing was lost" in result.printed
    assert import_from("hf-datasets", "--as", "instances", target="no").code == 2


def test_parquet_with_names_of_classes(source: Path, tmp_path: Path, import_from: Import) -> None:
    (source / "data").mkdir()
    rgb = np.repeat(MASK[..., None], 3, axis=2)
    rows = semantic(tmp_path, [MASK, rgb, MASK.astype(np.int32) + 0, rgb * np.array([1, 2, 3], np.uint8)])
    rows.to_parquet(source / "data/train-00000-of-00001.parquet")
    (source / "id2label.json").write_text(json.dumps({"0": "ground", "3": "tree", "4": "tree"}))
    result = import_from("hf-datasets", "--val-share", 0)
    assert result.content["OWN"]["garden"]["classes"] == ["ground", "tree (3)", "tree (4)"]
    np.testing.assert_array_equal(result.label_map(1), MASK)
    assert result.code == 1 and "colors" in result.printed
    assert len(result.records()) == 3


def instances(path: Path, objects: list[dict], field: Any, **more: Any) -> Any:
    features = datasets.Features({"image": datasets.Image(), "objects": field, "id": datasets.Value("int64")})
    columns = {"image": [str(draw(path / f"{i}.jpg")) for i in range(len(objects))], "objects": objects}
    return datasets.Dataset.from_dict({**columns, "id": list(range(len(objects)))}, features=features)


@pytest.mark.parametrize("as_list", [True, False])
def test_objects_with_polygons(source: Path, tmp_path: Path, import_from: Import, as_list: bool) -> None:
    names = datasets.ClassLabel(names=["cat", "dog"])
    box, number = datasets.List(datasets.Value("float32")), datasets.Value("float32")
    polygons = datasets.List(datasets.List(number))
    rows = {"bbox": [[10, 10, 20, 10], [0, 0, 5, 5]], "category": [1, 0], "segmentation": [[SQUARE], [[0, 0, 1, 1]]]}
    if as_list:
        field: Any = datasets.List({"bbox": box, "category": names, "segmentation": polygons})
        objects: Any = [dict(zip(rows, each, strict=True)) for each in zip(*rows.values(), strict=True)]
    else:
        lists = {"bbox": datasets.List(box), "category": datasets.List(names), "segmentation": datasets.List(polygons)}
        field, objects = lists, rows
    empty: Any = [] if as_list else {key: [] for key in rows}
    instances(tmp_path, [objects, empty], field).save_to_disk(source)
    result = import_from("hf-datasets", "--val-share", 0)
    found = result.objects()
    assert result.content["OWN"]["garden"]["classes"] == ["cat", "dog"]
    ((name, mask),) = found["0000.jpg"]
    assert name == "dog" and mask.sum() == 200 and found["0001.jpg"] == []
    assert losses(result.printed) == {"shapes without a pixel in the picture": 1}


def test_image_folder_with_metadata_and_boxes_alone(source: Path, import_from: Import) -> None:
    draw(source / "train/a.jpg")
    row = {"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "categories": [0, 1]}}
    (source / "train/metadata.jsonl").write_text(json.dumps(row) + "\n")
    result = import_from("hf-datasets")
    assert losses(result.printed) == {"boxes without an outline (rows of detection)": 2}
    assert result.content["OWN"]["garden"]["classes"] == ["0", "1"]


def test_a_path_that_leads_out_is_no_picture(source: Path, tmp_path: Path, import_from: Import) -> None:
    rows = semantic(tmp_path, [MASK, MASK]).cast_column("pixel_values", datasets.Image(decode=False))
    secret = str(draw(tmp_path / "secret.png"))
    cells = [{"bytes": None, "path": secret}, {"bytes": draw(tmp_path / "b.png").read_bytes(), "path": "../../b.png"}]
    table = rows.remove_columns("pixel_values").add_column("image", cells)
    features = datasets.Features({"label": datasets.Image(), "image": datasets.Image()})
    table.cast(features).to_parquet(source / "x.parquet")
    result = import_from("hf-datasets", "--val-share", 0, source="source/x.parquet")
    assert result.code == 1 and "left out" in result.printed
    assert [Path(record["file_name"]).name for record in result.records()] == ["0001.png"]


def test_what_has_no_mask_is_refused(source: Path, import_from: Import) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(source)
    result = import_from("hf-datasets")
    assert result.code == 2 and "text" in result.printed
    (source / "state.json").write_text("{")
    assert import_from("hf-datasets").code == 2
