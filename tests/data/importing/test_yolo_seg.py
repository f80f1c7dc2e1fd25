"""YOLO's segmentation format: https://docs.ultralytics.com/datasets/segment (COCO8-seg's layout), and Roboflow's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imported import Imported, draw, losses

Import = Callable[..., Imported]
SQUARE = "0 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n"


def write(source: Path, image: str, rows: str | None) -> None:
    draw(source / image)
    label = source / image.replace("images", "labels", 1)
    if rows is not None:
        label.parent.mkdir(parents=True, exist_ok=True)
        label.with_suffix(".txt").write_text(rows)


@pytest.fixture
def coco8(source: Path) -> Path:
    (source / "data.yaml").write_text(
        "path: coco8-seg # dataset root dir\ntrain: images/train\nval: images/val\ntest: # optional\n"
        "names:\n  0: person\n  1: bicycle\n  7: traffic light\n"
    )
    write(source, "images/train/a b.jpg", SQUARE + SQUARE.replace("0 ", "7 ", 1))
    write(source, "images/train/sub/c.d.png", "1 0 0 1 0 1 1")
    write(source, "images/val/e.jpg", None)
    return source


def test_outlines_become_instances_and_splits_stay(coco8: Path, import_from: Import) -> None:
    result = import_from("yolo-seg")
    assert result.code == 0
    objects = result.objects()
    assert list(objects) == ["a b.jpg", "c.d.png"]
    (first, mask), (second, _) = objects["a b.jpg"]
    assert (first, second) == ("person", "traffic light")
    expected = np.zeros((60, 80), bool)
    expected[15:30, 20:40] = True
    np.testing.assert_array_equal(mask, expected)
    assert objects["c.d.png"][0][0] == "bicycle"
    assert objects["c.d.png"][0][1].sum() == pytest.approx(2400, abs=60)  # half of the picture, and its diagonal
    assert result.content["TEST"] == ["garden_val"]
    assert len(result.records("val")) == 1
    assert losses(result.printed) == {"pictures without a file of labels, taken to be empty": 1}
    assert (result.folder / "images/train/sub/c.d.png").is_file()


def test_rows_that_are_no_outline_are_counted(coco8: Path, import_from: Import) -> None:
    rows = "0 0.5 0.5 0.2 0.2\n9 0 0 1 0 1 1\n0 0 0 1 0 1 1 2\nx 0 0 1 0 1 1\n0 5 5 6 5 6 6\n0 nan 0 1 0 1 1\n\n"
    rows += "0 0.1 0.1 0.1 0.1 0.1 0.1\n" + SQUARE
    (coco8 / "labels/train/a b.txt").write_text(rows)
    result = import_from("yolo-seg")
    assert len(result.objects()["a b.jpg"]) == 1
    lost = losses(result.printed)
    assert lost["boxes without an outline (rows of detection)"] == 1
    assert lost["shapes of a class that is not in the list"] == 1
    assert lost["rows that are no polygon"] == 2
    assert lost["shapes whose numbers make no sense"] == 2
    assert lost["shapes without a pixel in the picture"] == 1


def test_export_of_roboflow_whose_paths_lead_up(source: Path, import_from: Import) -> None:
    (source / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['pond']\n"
    )
    write(source, "train/images/a.jpg", SQUARE)
    write(source, "valid/images/b.jpg", SQUARE)
    result = import_from("yolo-seg")
    assert result.objects()["a.jpg"][0][0] == "pond"
    assert result.objects("val")["b.jpg"][0][1].sum() == 300
    assert losses(result.printed) == {"pictures that are missing": 1}  # the test split


def test_lists_of_pictures(source: Path, import_from: Import) -> None:
    (source / "own.yaml").write_text("path: .\ntrain: train.txt\nval: [val.txt]\nnames: [1, two]\n")
    (source / "train.txt").write_text("./images/a.jpg\n./images/gone.jpg\n")
    (source / "val.txt").write_text(f"{source}/images/b.jpg\r\n")
    write(source, "images/a.jpg", SQUARE)
    write(source, "images/b.jpg", SQUARE)
    result = import_from("yolo-seg", "--as", "labels", source="source/own.yaml")
    assert result.content["OWN"]["garden"]["classes"] == ["background", "1", "two"]
    labels = result.label_map()
    assert (labels == 1).sum() == 300 and (labels == 0).sum() == 4500
    assert len(result.records("val")) == 1
    assert losses(result.printed) == {"pictures that are missing": 1}


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("train: ../outside/images\nnames: [a]\n", "train"),
        ("train: images\nnames: {}\n", "names"),
        ("names: [a]\ntrain: [unclosed\n", "data.yaml"),
        ("a: &a [x]\nb: *a\n", "data.yaml"),
        ("path: /\ntrain: /etc\nnames: [a]\n", "data.yaml"),
    ],
)
def test_what_leads_out_or_says_nothing_is_refused(
    source: Path, tmp_path: Path, import_from: Import, content: str, fact: str
) -> None:
    draw(tmp_path / "outside/images/secret.png")
    (source / "data.yaml").write_text(content)
    result = import_from("yolo-seg")
    assert result.code == 2
    assert fact in result.printed and result.printed.count("\n") <= 2
    assert not result.folder.exists()


@pytest.mark.parametrize("name", ["source.tar.gz", "source.TAR", "source.7z"])
def test_other_archives_than_zip_are_to_be_unpacked(tmp_path: Path, import_from: Import, name: str):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    result = import_from("yolo-seg", source=name)
    assert result.code == 2 and name in result.printed and "unpack it" in result.printed
