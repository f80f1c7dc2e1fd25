from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny_dataset
import torch
from detectron2.evaluation import DatasetEvaluator
from PIL import Image
from tiny_dataset import GRASS, INPUTS, NAME, SEGMENT_MAP, SKY, instances, perfect_output

from maskformer.evaluation import InstanceEvaluator, PanopticEvaluator, SemanticEvaluator
from maskformer.structures import InputError


@pytest.fixture(autouse=True)
def _dataset(tmp_path: Path) -> None:
    tiny_dataset.register(tmp_path)


def scores(evaluator: DatasetEvaluator, output: dict) -> dict[str, float]:
    evaluator.reset()
    evaluator.process(INPUTS, [output])
    (result,) = evaluator.evaluate().values()
    return result


def test_perfect_semantic_prediction_has_miou_100():
    assert scores(SemanticEvaluator(NAME), perfect_output())["mIoU"] == 100


def test_semantic_iou_is_intersection_over_union_of_labelled_pixels(tmp_path: Path):
    label = np.full((4, 6), 255, dtype=np.uint8)
    label[0, :3] = 0, 0, 1
    Image.fromarray(label).save(tmp_path / "label.png")
    prediction = torch.ones(4, 6, dtype=torch.int64)
    prediction[0, 0] = 0
    sem_seg = torch.nn.functional.one_hot(prediction, 3).permute(2, 0, 1).float()
    result = scores(SemanticEvaluator(NAME), {"sem_seg": sem_seg})
    assert (result["IoU-grass"], result["IoU-sky"]) == (50, 50)  # 1 of 2 pixels each
    assert math.isnan(result["IoU-cat"])
    assert result["mIoU"] == 50
    assert result["pACC"] == pytest.approx(200 / 3)


def test_label_value_outside_the_classes_names_file_and_value(tmp_path: Path):
    Image.fromarray(np.full((4, 6), 7, dtype=np.uint8)).save(tmp_path / "label.png")
    with pytest.raises(InputError, match=r"label\.png.* 7"):
        scores(SemanticEvaluator(NAME), perfect_output())


def test_label_of_another_size_names_both_sizes(tmp_path: Path):
    Image.fromarray(np.zeros((8, 12), dtype=np.uint8)).save(tmp_path / "label.png")
    with pytest.raises(InputError, match=r"image\.jpg is 6 x 4 pixels .*label\.png is 12 x 8"):
        scores(SemanticEvaluator(NAME), perfect_output())


def test_model_of_other_classes_names_the_key():
    with pytest.raises(
        InputError, match=r"predicts 5 classes but the dataset has 3: set MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    ):
        scores(SemanticEvaluator(NAME), {"sem_seg": torch.zeros(5, 4, 6)})


def test_perfect_panoptic_prediction_has_pq_100(tmp_path: Path):
    result = scores(PanopticEvaluator(NAME, str(tmp_path / "out")), perfect_output())
    assert (result["PQ"], result["PQ_th"], result["PQ_st"]) == (100, 100, 100)


def test_panoptic_quality_is_recognition_times_segmentation():
    segment_map, segments = perfect_output()["panoptic_seg"]
    cat = segments[2]["id"]
    segment_map[segment_map == 40] = 0  # the second cat is missed
    rows, columns = (cat == SEGMENT_MAP).nonzero()
    segment_map[rows[0], columns[0]] = SKY  # the first loses one of its four pixels to the sky
    result = scores(PanopticEvaluator(NAME), {"panoptic_seg": (segment_map, segments[:3])})
    assert result["PQ_th"] == pytest.approx(100 * 0.75 / 1.5)  # IoU 3/4; one found, one missed
    assert result["PQ_st"] == pytest.approx(100 * (8 / 9 + 1) / 2)  # sky has 8 pixels, grass is perfect
    assert result["PQ"] == pytest.approx(100 * (0.5 + 8 / 9 + 1) / 3)


def test_empty_panoptic_prediction_has_pq_0():
    output = {"panoptic_seg": (torch.zeros(4, 6, dtype=torch.int32), [])}
    assert scores(PanopticEvaluator(NAME), output)["PQ"] == 0


def test_panoptic_quality_without_any_thing_is_undefined_for_things_alone(tmp_path: Path):
    annotated = (tmp_path / "panoptic.json").read_text().replace('"category_id": 9', '"category_id": 3')
    (tmp_path / "panoptic.json").write_text(annotated)
    output = {
        "panoptic_seg": (
            torch.full((4, 6), GRASS, dtype=torch.int32),
            [{"id": GRASS, "isthing": False, "category_id": 0}],
        )
    }
    result = scores(PanopticEvaluator(NAME), output)
    assert math.isnan(result["PQ_th"])
    assert result["PQ"] == result["PQ_st"] == 0  # grass has 8 of 24 pixels


def test_perfect_instances_have_ap_100():
    assert scores(InstanceEvaluator(NAME), perfect_output())["AP"] == pytest.approx(100)


def test_missing_one_of_two_instances_halves_recall_and_ap50():
    found = instances([SEGMENT_MAP == 30], classes=[2])
    assert scores(InstanceEvaluator(NAME), {"instances": found})["AP50"] == pytest.approx(100 * 51 / 101)


def test_no_instances_give_nan():
    assert math.isnan(scores(InstanceEvaluator(NAME), {"instances": instances([], classes=[])})["AP"])


def test_instances_keep_their_contiguous_classes():
    output = perfect_output()
    scores(InstanceEvaluator(NAME), output)
    assert output["instances"].pred_classes.tolist() == [2, 2]


def test_instance_of_a_stuff_class_is_refused():
    with pytest.raises(InputError, match="instance of class 0"):
        scores(InstanceEvaluator(NAME), {"instances": instances([SEGMENT_MAP == GRASS], classes=[0])})
