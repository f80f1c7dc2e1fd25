"""What an evaluation leaves for reports and programs, worked out by hand on one image of 4 x 6 pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tiny_dataset
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from PIL import Image
from tiny_dataset import INPUTS, NAME, SEGMENT_MAP, SKY, instances, perfect_output

from maskformer.evaluation import ImageByImageEvaluators, InstanceEvaluator, PanopticEvaluator, SemanticEvaluator
from maskformer.evaluation.confusion import measure_regions, score_objects, score_objects_by_size
from maskformer.evaluation.instance import match_masks
from maskformer.evaluation.results import describe_image, write_results

GRASS_CLASS, SKY_CLASS, CAT_CLASS, NONE = 0, 1, 2, 3
ALL = (SemanticEvaluator, PanopticEvaluator, InstanceEvaluator)


@pytest.fixture(autouse=True)
def _dataset(tmp_path: Path) -> None:
    tiny_dataset.register(tmp_path)


def read(path: Path) -> Any:
    """JSON as any program reads it: NaN is an error."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path.name} holds {name}"))


def evaluate(folder: Path, kinds: tuple[type, ...], output: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two files hold after an evaluation of the image: of all, and of the image."""
    evaluators = ImageByImageEvaluators([kind(NAME) for kind in kinds], str(folder / "results"))
    evaluators.reset()
    evaluators.process(INPUTS, [output])
    evaluators.evaluate()
    (image,) = read(folder / "results" / "per_image.json")["images"]
    return read(folder / "results" / "evaluation.json"), image


def one_cat_missed_and_one_smaller() -> dict[str, Any]:
    """The first cat loses one of its four pixels to the sky, the second is not there: its pixels are void."""
    segment_map, segments = perfect_output()["panoptic_seg"]
    segment_map[segment_map == 40] = 0
    rows, columns = (SEGMENT_MAP == 30).nonzero()
    segment_map[rows[0], columns[0]] = SKY
    return {"panoptic_seg": (segment_map, segments[:3])}


def labels(**changes: int) -> torch.Tensor:
    """Perfect labels, but for pixels given as r0c1=class."""
    found = perfect_output()["sem_seg"].argmax(0)
    for place, index in changes.items():
        found[int(place[1]), int(place[3])] = index
    return found


def test_panoptic_scores_of_image_classes_sizes_and_confusions(tmp_path: Path):
    evaluation, image = evaluate(tmp_path, (PanopticEvaluator,), one_cat_missed_and_one_smaller())
    cat, sky = 0.75 / 1.5, 8 / 9
    assert image["score"] == image["scores"]["panoptic_seg"]["PQ"] == pytest.approx(100 * (cat + sky + 1) / 3)
    rows = {row["class"]: row for row in evaluation["per_class"]["panoptic_seg"]}
    assert list(rows) == evaluation["classes"] == ["grass", "sky", "cat"]  # the model's order, not that of the JSON
    assert rows["cat"] == {"class": "cat", "PQ": 50, "SQ": 75, "RQ": pytest.approx(200 / 3), "TP": 1, "FP": 0, "FN": 1}
    assert evaluation["confusion"] == {
        "unit": "segments",
        "classes": ["grass", "sky", "cat"],
        "counts": [[0, 0, 1], [1, 1, 1], [CAT_CLASS, CAT_CLASS, 1], [CAT_CLASS, NONE, 1]],
    }
    small = [row for row in evaluation["by_size"] if row["size"].startswith("small")]
    assert {row["measure"]: (row["objects"], row["score"]) for row in small} == {
        "recall at IoU > 0.5": (4, 75),
        "mean IoU of found segments": (4, pytest.approx(100 * (0.75 + sky + 1) / 3)),
    }
    assert {row["score"] for row in evaluation["by_size"] if row not in small} == {None}


def test_a_segment_of_another_class_is_a_confusion(tmp_path: Path):
    segment_map, segments = perfect_output()["panoptic_seg"]
    segments[2] = {**segments[2], "category_id": SKY_CLASS, "isthing": False}  # the first cat is called sky
    evaluation, image = evaluate(tmp_path, (PanopticEvaluator,), {"panoptic_seg": (segment_map, segments)})
    counts = evaluation["confusion"]["counts"]
    assert [CAT_CLASS, SKY_CLASS, 1] in counts and not [pair for pair in counts if NONE in pair[:2]]
    assert image["score"] == pytest.approx(100 * (1 / 1.5 + 1 / 1.5 + 1) / 3)


def test_semantic_scores_of_image_classes_and_confusions(tmp_path: Path):
    label = np.full((4, 6), 255, dtype=np.uint8)
    label[0, :3] = GRASS_CLASS, GRASS_CLASS, SKY_CLASS
    Image.fromarray(label).save(tmp_path / "label.png")
    predicted = torch.full((4, 6), CAT_CLASS)
    predicted[0, 0] = GRASS_CLASS
    predicted[0, 2] = SKY_CLASS
    evaluation, image = evaluate(tmp_path, (SemanticEvaluator,), {"sem_seg": predicted})
    # Grass has 1 of 2 pixels, sky is perfect, and a cat is predicted that is not there.
    assert image["scores"]["sem_seg"] == pytest.approx({"mIoU": 50, "pACC": 200 / 3})
    assert evaluation["scores"]["sem_seg"]["mIoU"] == 75  # over the classes that are labelled
    rows = {row["class"]: row for row in evaluation["per_class"]["sem_seg"]}
    assert [rows["grass"][key] for key in ("IoU", "ACC", "pixels")] == [50, 50, 2]
    assert [rows["cat"][key] for key in ("IoU", "BoundaryIoU", "ACC", "pixels")] == [None, None, None, 0]
    assert sorted(evaluation["confusion"]["counts"]) == [[0, 0, 1], [0, 2, 1], [1, 1, 1], [NONE, CAT_CLASS, 21]]
    assert evaluation["confusion"]["unit"] == "pixels"
    assert evaluation["boundary"].keys() == {"mIoU", "mBoundaryIoU"}


def test_semantic_scores_of_regions_and_boundaries(tmp_path: Path):
    """A large region of 200 x 200 pixels loses a tenth of its pixels, far from its edge, to a class nobody labelled."""
    label = np.full((200, 200), GRASS_CLASS, dtype=np.uint8)
    label[90:100, 90:100] = SKY_CLASS  # small, and taken for grass
    Image.fromarray(label).save(tmp_path / "label.png")
    predicted = torch.full((200, 200), GRASS_CLASS)
    predicted[20:60, 50:150] = CAT_CLASS
    evaluation, _ = evaluate(tmp_path, (SemanticEvaluator,), {"sem_seg": predicted})
    grass, size = 40_000 - 100, evaluation["by_size"]
    assert [(row["objects"], row["score"]) for row in size] == [
        (1, 0), (0, None), (1, pytest.approx(100 * (grass - 4000) / grass))
    ]  # fmt: skip
    assert [row["size"].split()[0] for row in size] == ["small", "medium", "large"]
    iou = 100 * (grass - 4000) / 40_000
    assert evaluation["boundary"]["mIoU"] == pytest.approx(iou / 2)  # and nothing of the sky
    # 2 % of the diagonal are 6 pixels. Of grass that is 200^2 - 188^2 at the border and 22^2 - 10^2 around the sky; the
    # prediction has the border, and 6 pixels around the cat, which are 52 x 112 - 40 x 100.
    border, sky, cat = 200**2 - 188**2, 22**2 - 10**2, 52 * 112 - 40 * 100
    assert evaluation["boundary"]["mBoundaryIoU"] == pytest.approx(100 * border / (border + sky + cat) / 2)


def test_classes_of_one_name_have_their_own_scores(tmp_path: Path):
    MetadataCatalog.get(NAME).stuff_classes[SKY_CLASS] = "grass"
    predicted = labels()
    predicted[predicted == SKY_CLASS] = GRASS_CLASS
    evaluation, _ = evaluate(tmp_path, (SemanticEvaluator,), {"sem_seg": predicted})
    grass, sky, _ = evaluation["per_class"]["sem_seg"]
    assert grass["class"] == sky["class"] == "grass"
    assert grass["BoundaryIoU"] > 0 == sky["BoundaryIoU"]


def test_an_image_without_a_label_has_no_score(tmp_path: Path):
    Image.fromarray(np.full((4, 6), 255, dtype=np.uint8)).save(tmp_path / "label.png")
    evaluation, image = evaluate(tmp_path, (SemanticEvaluator,), {"sem_seg": labels()})
    assert (image["score"], image["scores"]["sem_seg"]["mIoU"]) == (None, None)
    assert evaluation["scores"]["sem_seg"]["mIoU"] is None


def test_instance_scores_of_image_classes_and_sizes(tmp_path: Path):
    lost = SEGMENT_MAP == 30
    lost[1, 1] = False
    found = instances([lost, SEGMENT_MAP == SKY], classes=[2, 2])
    evaluation, image = evaluate(tmp_path, (InstanceEvaluator,), {"instances": found})
    assert image["score"] == pytest.approx(100 * 0.75 / (1 + 0.5 + 0.5))  # one found, one wrong, one missed
    assert evaluation["per_class"]["segm"][0]["objects"] == 2
    sizes = [(row["size"], row["objects"]) for row in evaluation["by_size"]]
    assert sizes == [("small (< 32²)", 2), ("medium (< 96²)", 0), ("large", 0)]
    assert evaluation["confusion"]["counts"] == [[0, 0, 1], [0, 1, 1], [1, 0, 1]]  # cats alone; 1 is none


def test_predictions_below_one_half_do_not_count_for_an_image(tmp_path: Path):
    found = instances([SEGMENT_MAP == 30, SEGMENT_MAP == SKY], classes=[2, 2])
    found.scores = torch.tensor([0.51, 0.5])
    _, image = evaluate(tmp_path, (InstanceEvaluator,), {"instances": found})
    assert image["score"] == pytest.approx(100 / 1.5)


def test_no_instances_leave_tables_without_scores(tmp_path: Path):
    evaluation, image = evaluate(tmp_path, (InstanceEvaluator,), {"instances": instances([], classes=[])})
    assert (evaluation["scores"]["segm"]["AP"], evaluation["per_class"]["segm"][0]["AP50"]) == (None, None)
    assert image["score"] == 0  # two cats are missed


def encoded(mask: list[list[int]], category: int, *, crowd: bool = False) -> dict[str, Any]:
    area = int(np.sum(mask))
    segmentation = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"segmentation": segmentation, "category_id": category, "iscrowd": int(crowd), "area": area}


def test_masks_are_matched_with_their_own_category_first():
    left, most = [[1, 1, 1, 0]], [[1, 1, 0, 0]]
    truth = [encoded(left, 7)]
    rows = match_masks(truth, [encoded(left, 8), encoded(most, 7)])  # the better mask is of another category
    assert rows == [(7, 7, 3, pytest.approx(2 / 3)), (None, 8, None, None)]
    assert score_objects(rows) == pytest.approx(100 * (2 / 3) / 1.5)
    confused = match_masks(truth, [encoded(left, 8)])
    assert confused == [(7, 8, 3, 1)]
    assert score_objects([*rows[:1], *confused]) == pytest.approx(100 * (2 / 3) / 2)  # one missed and one wrong


def test_a_prediction_in_a_crowd_of_its_category_is_excused():
    crowd, inside = encoded([[1, 1, 1, 0]], 7, crowd=True), [[1, 1, 0, 0]]
    assert match_masks([crowd], [encoded(inside, 7)]) == []
    assert match_masks([crowd], [encoded(inside, 8)]) == [(None, 8, None, None)]


def test_each_object_is_found_once():
    mask = [[1, 1, 0, 0]]
    rows = match_masks([encoded(mask, 7)], [encoded(mask, 7), encoded(mask, 7)])
    assert sorted(rows, key=str) == [(7, 7, 2, 1), (None, 7, None, None)]
    assert match_masks([], [encoded(mask, 7)]) == [(None, 7, None, None)]
    assert match_masks([encoded(mask, 7)], []) == [(7, None, 2, None)]
    assert math.isnan(score_objects(match_masks([], [])))


def test_sizes_are_those_of_coco():
    areas = [(1, 1, 32**2 - 1, 0.8), (1, None, 32**2, None), (1, 2, 96**2, 0.9), (None, 1, None, None)]
    rows = [row for row in score_objects_by_size(areas) if "recall" in row["measure"]]
    assert [(row["objects"], row["score"]) for row in rows] == [(1, 100), (1, 0), (1, 0)]


def test_regions_of_one_class_that_do_not_touch_are_two():
    """Two squares of class 1, of 10 and 40 pixels a side, in class 0; 2 is ignored."""
    truth = np.zeros((120, 120), dtype=np.uint8)
    truth[5:15, 5:15] = 1
    truth[50:90, 50:90] = 1
    truth[110:] = 2
    predicted = np.zeros_like(truth)
    predicted[50:90, 50:70] = 1
    small, medium, large = measure_regions(predicted, truth, num_classes=2)
    assert (small, medium) == ([1, 0, 100], [1, 800, 1600])
    background = 110 * 120 - 100 - 1600
    assert large == [1, background, background]


def test_regions_touch_along_sides_and_not_at_corners():
    truth = np.eye(2, dtype=np.uint8)
    assert measure_regions(truth, truth, num_classes=2)[0] == [4, 4, 4]


def test_regions_of_large_images_have_their_size_in_pixels():
    truth = np.zeros((1024, 1024), dtype=np.uint8)
    truth[100:140, 100:140] = 1  # 40 x 40: medium
    small, medium, large = measure_regions(truth, truth, num_classes=2)
    assert (small[0], medium[0], large[0]) == (0, 1, 1)


def test_with_all_kinds_the_image_is_judged_by_its_panoptic_quality(tmp_path: Path):
    output = {**perfect_output(), **one_cat_missed_and_one_smaller()}
    evaluation, image = evaluate(tmp_path, ALL[::-1], output)
    assert image["score"] == image["scores"]["panoptic_seg"]["PQ"] < 100
    assert image["scores"]["sem_seg"]["mIoU"] == image["scores"]["segm"]["InstancePQ"] == 100
    assert evaluation["per_class"].keys() == evaluation["scores"].keys() == {"sem_seg", "panoptic_seg", "segm"}
    assert evaluation["confusion"]["unit"] == "pixels"
    assert not [name for scores in evaluation["scores"].values() for name in scores if "cat" in name]
    assert (image["file_name"], image["image_id"], image["height"], image["width"]) == ("image.jpg", 7, 4, 6)


def test_within_a_training_the_iteration_is_told(tmp_path: Path):
    with EventStorage(99):
        assert evaluate(tmp_path, ALL, perfect_output())[0]["iteration"] == 99
    assert evaluate(tmp_path, ALL, perfect_output())[0]["iteration"] is None


def test_entries_of_any_type_become_json():
    example = {"file_name": Path("a b/ü.JPG"), "image_id": np.int64(5), "height": np.int32(4), "other": object()}
    assert describe_image(example) == {"file_name": "a b/ü.JPG", "image_id": 5, "height": 4, "width": None}
    assert describe_image({"file_name": "a", "image_id": ("x", 1)})["image_id"] == "('x', 1)"


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("")
    write_results(str(tmp_path / "file"), "a", {}, [], [])
    assert str(tmp_path / "file") in caplog.text
