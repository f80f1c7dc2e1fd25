"""What fuzzing and looking for trouble found, each as the least input that showed it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from inputs import LAUGHS
from readers import INSTANCES, READERS

from maskformer.checkpoint import read_weights
from maskformer.config import load_config
from maskformer.data.files.masks import find_fault, find_rle_fault
from maskformer.structures import InputError


@pytest.mark.parametrize(
    "counts",
    [
        b"zzzzzz",  # pycocotools ended the process: free(): invalid pointer
        "PPPPPPPPPPPPP0",
        "é",
        "",
        "P",  # a number that goes on after the end
        [3, 3],
        [-3, 27],
        [2**40],
        [24.0],
        None,
        7,
    ],
)
def test_run_lengths_that_are_none_never_reach_pycocotools(counts: Any):
    assert "are no run lengths of 4 x 6 pixels" in find_rle_fault({"size": [4, 6], "counts": counts})


def test_run_lengths_whose_sum_overflows_are_none():
    assert "no run lengths" in find_rle_fault({"size": [2**31, 2**31], "counts": [2**61] * 10})


@pytest.mark.parametrize("size", [None, [], [4], [4, 6, 1], ["4", "6"], [float("nan"), 6], [True, 6]])
def test_size_of_run_lengths_is_two_integers(size: Any):
    assert "expected [height, width]" in find_rle_fault({"size": size, "counts": "0"})


def test_run_lengths_of_pycocotools_are_good():
    for seed in range(50):
        generator = np.random.default_rng(seed)
        mask = generator.random((int(generator.integers(1, 90)), int(generator.integers(1, 90)))) < generator.random()
        encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert find_rle_fault(encoded, mask.shape) is None
        assert find_rle_fault({**encoded, "counts": encoded["counts"].decode()}, mask.shape) is None
        assert "no run lengths" in find_rle_fault({**encoded, "counts": encoded["counts"] + b"1"})


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"bbox": [0, 0, float("nan"), 2]}, "expected four finite numbers"),
        ({"bbox": None}, "expected four finite numbers"),  # TypeError in Detectron2's loader
        ({"bbox": [0, 0, 2]}, "expected four finite numbers"),
        ({"bbox": ["0", 0, 1, 1]}, "expected four finite numbers"),
        ({"bbox": [0, 0, 1, 10**400]}, "expected four finite numbers"),
        ({"segmentation": [[0, 0, 1, float("inf"), 1, 1]]}, "expected finite numbers"),
        ({"segmentation": [[0, 0, 1e9, 0, 1, 1]]}, "far outside the image"),  # an outline of ten billion points
        ({"segmentation": [[0, 0, -(2**63), 0, 1, 1]]}, "far outside the image"),  # whose absolute value is negative
        ({"segmentation": [[0, 0, -1e9, 0, 1, 1]]}, "far outside the image"),
        ({"segmentation": [[0, 0, "1", 0, 1, 1]]}, "expected finite numbers"),
        ({"segmentation": [[0, 0, float("nan"), 0, 1, 1]]}, "expected finite numbers"),
        ({"segmentation": "polygon"}, "expected polygons or RLE"),
        ({"segmentation": [1, 2]}, "expected polygons or RLE"),
        ({"segmentation": {"size": [6, 4], "counts": [24]}}, r"the size \(6, 4\) .* but the image has \(4, 6\)"),
    ],
)
def test_box_or_mask_that_is_none_is_said(annotation: dict[str, Any], message: str):
    assert re.search(message, find_fault(annotation, (4, 6)) or "no fault")


def test_good_boxes_and_masks_have_no_fault():
    assert [find_fault(annotation, (4, 6)) for annotation in INSTANCES["annotations"]] == [None] * 3
    assert find_fault({"bbox": np.array([0.0, 0, 2, 2]), "segmentation": [np.array([-3.0, 0, 9, 0, 9, 9])]}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "aliases stand for more than 100000 values"),  # filled the memory
        ("MODEL: &a {WEIGHTS: *a}", "an alias stands for what it is part of"),  # RecursionError
        ("MODEL: " + "[" * 3000, "nested too deeply"),  # RecursionError
        ("_BASE_: input.yaml", "is based on itself"),  # RecursionError
        ("_BASE_: [a.yaml]", "expected the path of one file"),  # TypeError
        ("SEED: 2001-13-45", "month must be in"),  # ValueError
        (f"SEED: {'9' * 5000}", "Exceeds the limit"),  # ValueError
        ("SEED: \xff".encode("latin1"), "can't decode byte"),  # UnicodeDecodeError
        ("SEED: '" + "-" * 20000 + "1'", r"In .*input\.yaml: \w+"),  # MemoryError or RecursionError
        ("1: 2", "key 1 in .* does not exist"),
        ("!!python/object/apply:eval ['[int(x * 1 * 512) for x in range(5, 999999999)]']", "not plain YAML"),  # memory
        ("SEED: !!python/object/apply:os.system [touch exploded]", "not plain YAML"),
        ("DATASETS: {TRAIN: [[]]}", "expected the names of datasets"),  # TypeError
    ],
)
def test_configuration_that_no_one_would_write_is_refused(tmp_path: Path, text: str | bytes, message: str):
    path = tmp_path / "input.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        load_config(str(path))


def test_layer_that_is_no_mapping_is_refused_even_under_a_good_one(tmp_path: Path):
    """AttributeError: 'list' object has no attribute 'get'."""
    (tmp_path / "base.yaml").write_text(
        "MODEL: [1]\nDATASETS: {OWN: {a: {classes: [x], train: {images: i, labels: l}}}, TRAIN: [a_train]}"
    )
    (tmp_path / "input.yaml").write_text("_BASE_: base.yaml\nMODEL: {DEVICE: cpu}\n")
    assert load_config(str(tmp_path / "input.yaml")).MODEL.DEVICE == "cpu"


@pytest.mark.parametrize("value", ["-" * 20000 + "1", "(" * 300, "[" * 20000, "9" * 5000])
def test_value_that_no_one_would_write_is_refused_on_the_command_line(value: str):
    with pytest.raises(InputError, match="In the command line: "):
        load_config("", ["SOLVER.BASE_LR", value])


@pytest.mark.parametrize("name", ["\0", "a\0.yaml", "x" * 5000])
def test_name_of_a_configuration_that_is_none_is_refused(name: str):
    """ValueError: embedded null byte."""
    with pytest.raises(InputError, match="Configuration file "):
        load_config(name)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def test_tar_archive_of_old_pytorch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """PyTorch before 2.6 unpacks it in spite of weights_only (CVE-2025-32434)."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open("model.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(_Bomb(), protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(InputError, match="it is a tar archive"):
        read_weights("model.pth")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 5_000, "\ud800", '{"images": {}}', "null", "[]"])
@pytest.mark.parametrize("kind", ["panoptic JSON", "instance JSON"])
def test_json_that_no_one_would_write_is_refused(tmp_path: Path, kind: str, content: str):
    READERS[kind].prepare(tmp_path)
    with pytest.raises(InputError, match=r"\.json"):
        READERS[kind].use(content.encode("utf-8", "surrogatepass"), tmp_path)


def read_changed(kind: str, folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Read a JSON file that was good before a change."""
    reader = READERS[kind]
    reader.prepare(folder)
    content = json.loads(reader.seeds[0])
    change(content)
    reader.use(json.dumps(content).encode(), folder)


@pytest.mark.parametrize("value", [float("nan"), 10**40, [], {}, None, True, "x", -1, 1.5])
@pytest.mark.parametrize("place", ["id", "category_id"])
def test_segment_of_impossible_ids_is_refused(tmp_path: Path, place: str, value: Any):
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["segments_info"][0][place] = value

    with pytest.raises(InputError, match=r"panoptic\.json|Category"):
        read_changed("panoptic JSON", tmp_path, change)


@pytest.mark.parametrize("place", ["file_name", "height", "width"])
def test_image_without_name_or_size_is_refused(tmp_path: Path, place: str):
    """KeyError: 'width'."""
    with pytest.raises(InputError, match=rf"Image 0 of .*panoptic\.json.* has {place} None"):
        read_changed("panoptic JSON", tmp_path, lambda content: content["images"][0].pop(place))


@pytest.mark.parametrize("kind", ["panoptic JSON", "instance JSON"])
def test_image_of_a_name_that_no_file_can_have_is_refused(tmp_path: Path, kind: str):
    """OSError: File name too long."""
    with pytest.raises(InputError, match="does not exist but"):
        read_changed(kind, tmp_path, lambda content: content["images"][0].update(file_name="é" * 300))


def test_map_of_a_name_that_no_file_can_have_is_refused(tmp_path: Path):
    """UnicodeEncodeError: surrogates not allowed."""
    with pytest.raises(InputError, match=r"panoptic\.json .*has file_name .*ud800.*expected text"):
        read_changed("panoptic JSON", tmp_path, lambda content: content["annotations"][0].update(file_name="\ud800"))


def test_foreign_category_beside_one_without_name_is_refused(tmp_path: Path):
    """KeyError: 'name'."""
    with pytest.raises(InputError, match=r"Category .* is None in"):
        read_changed("panoptic JSON", tmp_path, lambda content: content["categories"][0].pop("name"))


def test_picture_that_would_run_ghostscript_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no file here runs a program"):
        READERS["image"].use(READERS["image"].seeds[-1], tmp_path)
