"""Each evaluator keeps what ``EvaluatorTests`` asks of all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cityscapes_layout import write_cityscapes
from detectron2.structures import BitMasks, Instances
from evaluator_tests import EvaluatorTests

from maskformer.data.datasets import register_all
from maskformer.data.datasets.cityscapes import register_cityscapes
from maskformer.data.files.reading import read_class_map, read_segment_ids
from maskformer.demo.shapes import generate_shapes
from maskformer.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemanticEvaluator,
    InstanceEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
)

SHIFT = 3  # pixels by which predictions are beside the truth


@pytest.fixture(scope="module", autouse=True)
def _datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=1, num_val=3, image_size=(64, 80), seed=3)
    register_all(str(root))
    register_cityscapes(root)
    write_cityscapes(root)
    yield
    register_cityscapes("datasets")


def moved_segments(record: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    ids = np.roll(read_segment_ids(record["pan_seg_file_name"]), SHIFT, axis=1).astype(np.int32)
    return ids, [{key: segment[key] for key in ("id", "isthing", "category_id")} for segment in record["segments_info"]]


def moved_instances(record: dict[str, Any], index: int, first_thing: int = 0) -> Instances:
    ids, segments = moved_segments(record)
    things = [segment for segment in segments if segment["isthing"]]
    masks = torch.as_tensor(np.array([ids == thing["id"] for thing in things]).reshape(-1, *ids.shape))
    found = Instances(ids.shape, pred_masks=masks, pred_boxes=BitMasks(masks).get_bounding_boxes())
    found.scores = torch.as_tensor(np.random.default_rng(index).random(len(things), dtype=np.float32))
    found.pred_classes = torch.tensor([thing["category_id"] - first_thing for thing in things], dtype=torch.int64)
    return found


class TestSemanticEvaluator(EvaluatorTests):
    evaluator, dataset = SemanticEvaluator, "shapes_panoptic_val"
    files = ("sem_seg_predictions.json", "sem_seg_evaluation.pth")

    def output(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        labels = np.roll(read_class_map(record["sem_seg_file_name"]), SHIFT, axis=1)
        return {"sem_seg": torch.as_tensor(labels.astype(np.int32))}


class TestPanopticEvaluator(EvaluatorTests):
    evaluator, dataset = PanopticEvaluator, "shapes_panoptic_val"
    files = ("predictions.json",)

    def output(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        ids, segments = moved_segments(record)
        return {"panoptic_seg": (torch.as_tensor(ids), segments)}


class TestInstanceEvaluator(EvaluatorTests):
    evaluator, dataset = InstanceEvaluator, "shapes_panoptic_val"
    files = ("coco_instances_results.json",)

    def output(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        return {"instances": moved_instances(record, index)}


class TestCityscapesSemanticEvaluator(EvaluatorTests):
    evaluator, dataset = CityscapesSemanticEvaluator, "cityscapes_fine_sem_seg_val"

    def output(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        labels = np.roll(read_class_map(record["sem_seg_file_name"]).clip(max=18), SHIFT, axis=1)
        return {"sem_seg": torch.as_tensor(labels.astype(np.int32))}


class TestCityscapesInstanceEvaluator(EvaluatorTests):
    evaluator, dataset = CityscapesInstanceEvaluator, "cityscapes_fine_panoptic_val"

    def output(self, record: dict[str, Any], index: int) -> dict[str, Any]:
        return {"instances": moved_instances(record, index)}
