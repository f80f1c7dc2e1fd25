"""Boundary IoU: worked by hand, and against one mask after the other, grown and shrunk pixel by pixel."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from maskformer.data.datasets.registration import register
from maskformer.evaluation import SemanticEvaluator

NAME = "boundaries_val"


@pytest.fixture(autouse=True)
def _forget():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


def measure(root: Path, pairs: list[tuple[np.ndarray, np.ndarray]], num_classes: int) -> dict[str, float]:
    """Scores of (prediction, label); 255 (65535 where there are more classes) is ignored."""
    records = []
    ignore_label = 255 if num_classes <= 255 else 65535
    for index, (_, label) in enumerate(pairs):
        path = root / f"{index}.tif"
        Image.fromarray(label.astype(np.uint8 if ignore_label == 255 else np.int32)).save(path)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(path)})
    names = [str(index) for index in range(num_classes)]
    register(NAME, lambda: records, stuff_classes=names, ignore_label=ignore_label)
    evaluator = SemanticEvaluator(NAME)
    for record, (predicted, _) in zip(records, pairs):
        measured = evaluator.measure(record, {"sem_seg": torch.as_tensor(predicted.astype(np.int64))})
        evaluator.add(json.loads(json.dumps(measured)))  # as a journal keeps it
    return evaluator.evaluate()["sem_seg"]


def test_boundary_iou_worked_by_hand(tmp_path: Path):
    """8 x 9 pixels have a diagonal of 12.04, so a boundary is one pixel wide; a block of 4 x 4 has 12 such pixels."""
    label, predicted = np.zeros((8, 9)), np.zeros((8, 9))
    label[2:6, 2:6] = 1
    predicted[2:6, 3:7] = 1  # one column to the right
    scores = measure(tmp_path, [(predicted, label)], 2)
    assert scores["IoU-1"] == pytest.approx(100 * 12 / 20)
    # Of both blocks' boundaries (12 each), the rows of top and bottom share 3 each; no column is in both.
    assert scores["BoundaryIoU-1"] == pytest.approx(100 * 6 / 18)
    assert scores["min(IoU, B-Iou)-1"] == scores["BoundaryIoU-1"]
    assert scores["mBoundaryIoU"] == pytest.approx((scores["BoundaryIoU-0"] + scores["BoundaryIoU-1"]) / 2)


def boundary_of(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask from which fewer than ``width`` steps, in rows and columns at once, lead out of it."""
    inside = np.pad(mask, 1)
    for _ in range(width):
        shrunk = inside.copy()
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                shrunk &= np.roll(inside, (row, column), (0, 1))
        inside = shrunk
    return mask & ~inside[1:-1, 1:-1]


@pytest.mark.parametrize("num_classes", [3, 255, 300])
@pytest.mark.parametrize("size", [(90, 130), (3, 200), (1, 1)])
def test_all_classes_at_once_equal_one_mask_after_the_other(tmp_path: Path, size: tuple[int, int], num_classes: int):
    rng, pairs = np.random.default_rng(num_classes), []
    for _ in range(2):
        coarse = rng.integers(0, 5, (2, 6, 7)) * (num_classes // 5 or 1) % num_classes
        rows, columns = np.arange(size[0]) * 6 // size[0], np.arange(size[1]) * 7 // size[1]
        predicted, label = coarse[0][rows][:, columns], coarse[1][rows][:, columns]
        label[rng.random(size) < 0.02] = 255 if num_classes <= 255 else 65535
        pairs.append((predicted, label))
    scores = measure(tmp_path, pairs, num_classes)
    width = max(1, round(0.02 * float(np.hypot(*size))))
    for index in range(num_classes):
        common = union = 0
        for predicted, label in pairs:
            seen = label < num_classes
            masks = [boundary_of((labels == index) & seen, width) for labels in (predicted, label)]
            common, union = common + (masks[0] & masks[1]).sum(), union + (masks[0] | masks[1]).sum()
        labelled = any((label == index).any() for _, label in pairs)
        expected = 100 * common / union if labelled else math.nan
        assert scores[f"BoundaryIoU-{index}"] == pytest.approx(expected, nan_ok=True)


def test_class_that_is_nowhere_right_has_zero_at_its_boundary(tmp_path: Path):
    label, predicted = np.zeros((64, 80)), np.zeros((64, 80))
    label[10:30, 10:30] = 1
    predicted[40:60, 40:60] = 1
    scores = measure(tmp_path, [(predicted, label)], 3)
    assert scores["IoU-1"] == scores["BoundaryIoU-1"] == scores["min(IoU, B-Iou)-1"] == 0
    assert math.isnan(scores["BoundaryIoU-2"]) and math.isnan(scores["min(IoU, B-Iou)-2"])


def test_perfect_prediction_has_100_whatever_it_says_of_ignored_pixels(tmp_path: Path):
    label = np.zeros((64, 80))
    label[20:40], label[30:50, 30:60] = 1, 255
    predicted = np.where(label == 255, 2, label)
    scores = measure(tmp_path, [(predicted, label)], 3)
    assert (scores["mIoU"], scores["mBoundaryIoU"]) == (100, 100)


def test_all_ignored_is_undefined(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    scores: dict[str, Any] = measure(tmp_path, [(np.zeros((4, 6)), np.full((4, 6), 255))], 2)
    assert all(math.isnan(score) for score in scores.values())
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
