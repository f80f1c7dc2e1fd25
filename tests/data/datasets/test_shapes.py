from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_tests import DatasetTests
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools import mask as coco_mask

from maskformer.data import verify_dataset
from maskformer.data.datasets.shapes import CATEGORIES, THINGS, register_shapes
from maskformer.demo.shapes import generate_shapes
from maskformer.structures import InputError

SIZE = (64, 96)
NAMES = [f"shapes_{task}_{split}" for task in ("panoptic", "sem_seg", "instance") for split in ("train", "val")]


class TestShapes(DatasetTests):
    names = tuple(NAMES)
    write = staticmethod(partial(generate_shapes, num_train=2, num_val=1, image_size=SIZE, seed=1))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=3, num_val=2, image_size=SIZE, seed=0)
    return root


@pytest.fixture(autouse=True)
def _registered(root: Path) -> None:
    register_shapes(root)


def read_ids(path: str) -> np.ndarray:
    red, green, blue = np.array(Image.open(path), np.int64).transpose(2, 0, 1)
    return red + 256 * green + 65536 * blue


def read_label(path: str, dtype: type = int) -> np.ndarray:
    return np.array(Image.open(path)).astype(dtype)


def perfect_panoptic(record: dict[str, Any]) -> dict[str, Any]:
    ids = read_ids(record["pan_seg_file_name"])
    segment_map = np.zeros(ids.shape, np.int32)
    for new_id, segment in enumerate(record["segments_info"], 1):
        segment_map[ids == segment["id"]] = new_id
    segments = [
        {"id": new_id, "isthing": segment["isthing"], "category_id": segment["category_id"]}
        for new_id, segment in enumerate(record["segments_info"], 1)
    ]
    return {"panoptic_seg": (torch.from_numpy(segment_map), segments)}


def perfect_instances(record: dict[str, Any]) -> dict[str, Any]:
    annotations = record["annotations"]
    instances = Instances(SIZE)
    instances.pred_masks = torch.from_numpy(np.stack([coco_mask.decode(a["segmentation"]) for a in annotations]) > 0)
    instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
    instances.scores = torch.ones(len(annotations))
    corners = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32)
    instances.pred_boxes = Boxes(torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1))
    return {"instances": instances}


def perfect_semantic(record: dict[str, Any]) -> dict[str, Any]:
    labels = torch.from_numpy(read_label(record["sem_seg_file_name"]))
    return {"sem_seg": torch.nn.functional.one_hot(labels, len(CATEGORIES)).permute(2, 0, 1).float()}


def evaluate(evaluator: Any, name: str, predict: Any) -> dict[str, Any]:
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [predict(record)])
    return evaluator.evaluate()


@pytest.mark.parametrize("name", NAMES)
def test_each_name_loads_images_of_the_stated_size(name):
    records = DatasetCatalog.get(name)
    assert len(records) == (3 if name.endswith("train") else 2)
    assert [record["image_id"] for record in records] == list(range(1, len(records) + 1))
    for record in records:
        assert Image.open(record["file_name"]).size == (record["width"], record["height"]) == SIZE[::-1]


def test_panoptic_records_have_contiguous_categories():
    for record in DatasetCatalog.get("shapes_panoptic_train"):
        semantic = read_label(record["sem_seg_file_name"])
        ids = read_ids(record["pan_seg_file_name"])
        for segment in record["segments_info"]:
            assert set(semantic[ids == segment["id"]]) == {segment["category_id"]}
            assert segment["isthing"] is (segment["category_id"] < 5)


def test_semantic_records_say_nothing_of_segments():
    record = DatasetCatalog.get("shapes_sem_seg_val")[0]
    assert set(record) == {"file_name", "image_id", "height", "width", "sem_seg_file_name"}


def test_instance_records_have_the_things_of_the_panoptic_ones():
    panoptic, instance = DatasetCatalog.get("shapes_panoptic_val"), DatasetCatalog.get("shapes_instance_val")
    for whole, things in zip(panoptic, instance, strict=True):
        expected = [s["category_id"] for s in whole["segments_info"] if s["isthing"]]
        assert [a["category_id"] for a in things["annotations"]] == expected


def test_metadata_names_things_and_all_categories():
    metadata = MetadataCatalog.get("shapes_panoptic_val")
    assert metadata.thing_classes == ["ball", "box", "triangle", "star", "ring"]
    assert metadata.stuff_classes == [*metadata.thing_classes, "sky", "water", "grass", "sand"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
    assert metadata.stuff_dataset_id_to_contiguous_id == {i + 1: i for i in range(9)}
    assert (len(metadata.thing_colors), len(metadata.stuff_colors)) == (5, 9)
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)


@pytest.mark.parametrize(
    ("task", "evaluator_type"), [("panoptic", "coco_panoptic_seg"), ("sem_seg", "sem_seg"), ("instance", "coco")]
)
def test_each_task_names_its_evaluator(task, evaluator_type):
    assert MetadataCatalog.get(f"shapes_{task}_val").evaluator_type == evaluator_type


def test_perfect_panoptic_predictions_score_100(tmp_path):
    pytest.importorskip("panopticapi")
    evaluator = COCOPanopticEvaluator("shapes_panoptic_val", str(tmp_path))
    scores = evaluate(evaluator, "shapes_panoptic_val", perfect_panoptic)["panoptic_seg"]
    assert (scores["PQ"], scores["PQ_th"], scores["PQ_st"]) == (100, 100, 100)


@pytest.mark.parametrize("name", ["shapes_sem_seg_val", "shapes_panoptic_val"])
def test_perfect_semantic_predictions_score_100(name):
    # Detectron2's own reading of labels needs a NumPy before 2.
    evaluator = SemSegEvaluator(name, distributed=False, sem_seg_loading_fn=read_label)
    scores = evaluate(evaluator, name, perfect_semantic)["sem_seg"]
    assert (scores["mIoU"], scores["pACC"]) == (100, 100)


def test_perfect_instance_predictions_score_100():
    evaluator = COCOEvaluator("shapes_instance_val", tasks=("segm", "bbox"), distributed=False, use_fast_impl=False)
    scores = evaluate(evaluator, "shapes_instance_val", perfect_instances)
    assert scores["segm"]["AP"] == pytest.approx(100)
    assert scores["bbox"]["AP"] == pytest.approx(100)


def test_visualizer_draws_the_panoptic_labels():
    record = DatasetCatalog.get("shapes_panoptic_val")[0]
    image = np.array(Image.open(record["file_name"]))
    segment_map, segments = perfect_panoptic(record)["panoptic_seg"]
    drawn = Visualizer(image, MetadataCatalog.get("shapes_panoptic_val")).draw_panoptic_seg(segment_map, segments)
    assert np.abs(drawn.get_image().astype(int) - image).max() > 50


def test_registering_another_root_replaces_the_first(root, tmp_path):
    register_shapes(tmp_path)
    assert MetadataCatalog.get("shapes_panoptic_val").panoptic_json.startswith(str(tmp_path))
    with pytest.raises(InputError):
        DatasetCatalog.get("shapes_panoptic_val")
    register_shapes(root)
    register_shapes(root)
    assert len(DatasetCatalog.get("shapes_panoptic_val")) == 2


@pytest.mark.parametrize("name", NAMES)
def test_missing_dataset_is_explained(tmp_path, name):
    register_shapes(tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path}.*does not exist.*maskformer\.tools\.make_shapes.*make demo"):
        verify_dataset(name, len(CATEGORIES), is_train=False)


def test_thing_classes_are_the_first_categories():
    assert CATEGORIES[: len(THINGS)] == THINGS
