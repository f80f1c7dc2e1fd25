"""Cityscapes' measures on a small set of its layout, read by our loaders."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
import pytest
import torch
from cityscapes_layout import NAMES, SIZE, draw_instance_ids, write_cityscapes
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as instance_scripts
from cityscapesscripts.helpers.labels import trainId2label
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskformer.config import load_config
from maskformer.data.datasets.cityscapes import register_cityscapes
from maskformer.data.files.reading import read_class_map, read_segment_ids
from maskformer.evaluation import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator, build_evaluator
from maskformer.evaluation.cityscapes import load_scripts
from maskformer.structures import InputError

TASKS = ("sem_seg", "instance_seg", "panoptic")
CAR = 2  # among the 8 things


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    """The drawn set, registered; afterwards the names stand for Detectron2's default folder again."""
    register_cityscapes(tmp_path)
    yield write_cityscapes(tmp_path)
    register_cityscapes("datasets")


def load(task: str) -> list[dict[str, Any]]:
    return DatasetCatalog.get(f"cityscapes_fine_{task}_val")


def semantic_outputs() -> list[dict[str, Any]]:
    labels = [torch.tensor(read_class_map(record["sem_seg_file_name"])).long() for record in load("sem_seg")]
    return [{"sem_seg": torch.nn.functional.one_hot(label.clamp(max=18), 19).permute(2, 0, 1)} for label in labels]


def instance_outputs() -> list[dict[str, Any]]:
    """Every instance that is no group, with falling scores."""
    outputs = []
    for record in load("instance_seg"):
        found = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
        masks = torch.as_tensor(np.stack([rle.decode(annotation["segmentation"]) for annotation in found]))
        classes = torch.tensor([annotation["category_id"] for annotation in found])
        scores = 0.9 - 0.1 * torch.arange(len(found))
        boxes = Boxes(torch.zeros(len(found), 4))
        outputs.append(
            {"instances": Instances(SIZE, pred_masks=masks, pred_classes=classes, scores=scores, pred_boxes=boxes)}
        )
    return outputs


def panoptic_outputs() -> list[dict[str, Any]]:
    return [
        {
            "panoptic_seg": (
                torch.as_tensor(read_segment_ids(record["pan_seg_file_name"])),
                [{k: segment[k] for k in ("id", "isthing", "category_id")} for segment in record["segments_info"]],
            )
        }
        for record in load("panoptic")
    ]


def measure(evaluator: Any, task: str, outputs: list[dict[str, Any]]) -> dict[str, float]:
    evaluator.reset()
    evaluator.process(load(task), outputs)
    (scores,) = evaluator.evaluate().values()
    return scores


def test_perfect_predictions_of_every_task_score_100() -> None:
    cfg = load_config("", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19"])
    outputs = [
        {**semantic, **instance, **panoptic}
        for semantic, instance, panoptic in zip(semantic_outputs(), instance_outputs(), panoptic_outputs(), strict=True)
    ]
    for output, record in zip(outputs, load("panoptic"), strict=True):  # a panoptic model numbers things among all
        output["instances"] = copy.copy(output["instances"])
        output["instances"].pred_classes = output["instances"].pred_classes + 11
        assert {s["category_id"] for s in record["segments_info"] if s["isthing"]} >= {11, 13}
    for switch in ("SEMANTIC_ON", "PANOPTIC_ON", "INSTANCE_ON"):
        cfg.MODEL.MASK_FORMER.TEST[switch] = True
    evaluator = build_evaluator(cfg, "cityscapes_fine_panoptic_val")
    evaluator.reset()
    evaluator.process(load("panoptic"), outputs)
    results = evaluator.evaluate()
    assert results["sem_seg"] == pytest.approx({"IoU": 100, "iIoU": 100, "IoU_sup": 100, "iIoU_sup": 100})
    assert results["segm"] == pytest.approx({"AP": 100, "AP50": 100})
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)


def test_semantic_iou_is_intersection_over_union_over_both_images() -> None:
    outputs = semantic_outputs()
    car, road = 13, 0
    cars = outputs[0]["sem_seg"][car].clone()
    outputs[0]["sem_seg"][car] = 0  # the first image's cars are taken for road
    outputs[0]["sem_seg"][road] |= cars
    truth = np.stack([read_class_map(record["sem_seg_file_name"]) for record in load("sem_seg")])
    lost = int(cars.sum())
    assert lost == 16 * 16 + 16 * 18 - 14 * 4
    num_cars, num_roads = int((truth == car).sum()), int((truth == road).sum())
    num_classes = len(set(np.unique(truth)) - {255})
    expected = (num_classes - 2 + (num_cars - lost) / num_cars + num_roads / (num_roads + lost)) / num_classes
    scores = measure(CityscapesSemanticEvaluator("cityscapes_fine_sem_seg_val"), "sem_seg", outputs)
    assert scores["IoU"] == pytest.approx(100 * expected)
    assert scores["iIoU"] < 100


def run_instance_scripts(folder: Path, outputs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> dict:
    """The same predictions through the files that cityscapesScripts reads."""
    (folder / "predictions").mkdir()
    monkeypatch.setattr(instance_scripts, "writeDict2JSON", lambda *_: None)  # its cache, which NumPy 2 integers break
    load_scripts("evalInstanceLevelSemanticLabeling")  # makes it run on NumPy 2.4
    predictions, truth = [], []
    for record, output in zip(load("instance_seg"), outputs, strict=True):
        lines = []
        for number, (mask, index, score) in enumerate(
            zip(*(output["instances"].get(k) for k in ("pred_masks", "pred_classes", "scores")), strict=True)
        ):
            name = f"{record['image_id']}_{number}.png"
            Image.fromarray(mask.numpy().astype(np.uint8)).save(folder / "predictions" / name)
            lines.append(f"{name} {trainId2label[11 + int(index)].id} {float(score)}\n")
        predictions.append(folder / "predictions" / f"{record['image_id']}_pred.txt")
        predictions[-1].write_text("".join(lines))
        truth.append(next(folder.glob(f"gtFine/val/*/{record['image_id']}_gtFine_instanceIds.png")))
    arguments = instance_scripts.args
    monkeypatch.setattr(arguments, "predictionPath", str(folder / "predictions"))
    monkeypatch.setattr(arguments, "gtInstancesFile", str(folder / "gtInstances.json"))
    for key, value in (("JSONOutput", False), ("quiet", True)):
        monkeypatch.setattr(arguments, key, value)
    return instance_scripts.evaluateImgLists([str(p) for p in predictions], [str(t) for t in truth], arguments)


def test_instance_ap_of_perturbed_masks_is_that_of_cityscapesscripts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = instance_outputs()
    for output, shift in zip(outputs, (2, 4), strict=True):
        instances = output["instances"]
        instances.pred_masks = torch.roll(instances.pred_masks, shift, dims=2)
    extra = copy.deepcopy(outputs[0]["instances"])[:3]
    extra.pred_masks = torch.zeros(3, *SIZE, dtype=torch.uint8)
    extra.pred_masks[2, 44:, :6] = 1  # on the ego vehicle, which is void: ignored
    extra.pred_masks[0, 30:44, 50:62] = 1
    extra.pred_classes[0] = 7  # a bicycle, on the group of bicycles: ignored
    extra.pred_masks[1, :12, :20] = 1  # in the sky: a false positive, and the most certain of all
    extra.scores = torch.tensor([0.95, 0.99, 0.98])
    outputs[0]["instances"] = Instances.cat([outputs[0]["instances"], extra])
    expected = run_instance_scripts(folder, outputs, monkeypatch)["averages"]
    scores = measure(CityscapesInstanceEvaluator("cityscapes_fine_instance_seg_val"), "instance_seg", outputs)
    assert 5 < scores["AP"] < 95 and scores["AP"] < scores["AP50"]
    assert scores == pytest.approx({"AP": 100 * expected["allAp"], "AP50": 100 * expected["allAp50%"]})


def test_missing_one_of_two_cars_halves_their_recall() -> None:
    outputs = instance_outputs()
    for output in outputs:
        found = output["instances"]
        first_car = int((found.pred_classes == CAR).nonzero()[0])
        output["instances"] = found[torch.arange(len(found)) != first_car]
    scores = measure(CityscapesInstanceEvaluator("cityscapes_fine_instance_seg_val"), "instance_seg", outputs)
    assert scores == pytest.approx({"AP": 75, "AP50": 75})  # persons 100, cars 50


def test_panoptic_quality_counts_a_missed_car() -> None:
    outputs = panoptic_outputs()
    segment_map, segments = outputs[0]["panoptic_seg"]
    car = next(segment for segment in segments if segment["category_id"] == 13)
    outputs[0]["panoptic_seg"] = (
        torch.where(segment_map == car["id"], 0, segment_map),
        [segment for segment in segments if segment is not car],
    )
    cfg = load_config("", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19"])
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    scores = measure(build_evaluator(cfg, "cityscapes_fine_panoptic_val"), "panoptic", outputs)
    cars = 3 / (3 + 0.5)  # three of four found, none wrong
    assert scores["PQ_th"] == pytest.approx(100 * (cars + 1) / 2)
    assert scores["PQ_st"] == pytest.approx(100)


def test_image_without_prediction_and_wrong_sizes_are_refused() -> None:
    evaluator = CityscapesSemanticEvaluator("cityscapes_fine_sem_seg_val")
    records, outputs = load("sem_seg"), semantic_outputs()
    evaluator.reset()
    evaluator.process(records[:1], outputs[:1])
    with pytest.raises(InputError, match=rf"1 images .* first \['{NAMES[1]}_gtFine_instanceIds.png'\]"):
        evaluator.evaluate()
    with pytest.raises(InputError, match=r"leftImg8bit.png is 32 x 48 pixels .*labelIds.png is 64 x 48"):
        evaluator.process(records[:1], [{"sem_seg": outputs[0]["sem_seg"][..., :32]}])
    with pytest.raises(InputError, match=r"predicts 7 classes but the dataset has 19"):
        evaluator.process(records[:1], [{"sem_seg": outputs[0]["sem_seg"][:7]}])


def test_instance_of_a_stuff_class_is_refused() -> None:
    outputs = instance_outputs()
    outputs[0]["instances"].pred_classes[0] = 8
    with pytest.raises(InputError, match="instance of class 8, which is none of the 8 things"):
        CityscapesInstanceEvaluator("cityscapes_fine_instance_seg_val").process(load("instance_seg"), outputs)


def test_drawn_ids_hold_instances_groups_and_void() -> None:
    assert set(np.unique(draw_instance_ids(NAMES[0]))) == {1, 7, 11, 23, 33, 24000, 26000, 26001}
    assert MetadataCatalog.get("cityscapes_fine_instance_seg_val").thing_classes[CAR] == "car"
