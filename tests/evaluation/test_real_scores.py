"""Scores of perturbed truth on real images are those of the libraries that define them, in any number of processes."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import SemSegEvaluator, inference_on_dataset
from detectron2.structures import BitMasks, Instances
from detectron2.utils import comm
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from maskformer.config import load_config
from maskformer.data.datasets import register_all
from maskformer.engine.accelerator import Accelerator
from maskformer.evaluation import build_evaluator
from maskformer.runs.launch import run_in_processes

SEMANTIC, PANOPTIC = "ade20k_sem_seg_val", "coco_2017_val_panoptic"
SHIFT = 5  # pixels by which every prediction misses the truth

pytestmark = [pytest.mark.slow, pytest.mark.samples]


def generator_of(record: dict[str, Any]) -> np.random.Generator:
    """Random numbers that depend on the image alone, so that every process perturbs it alike."""
    return np.random.default_rng(len(record["file_name"].encode()) + sum(Path(record["file_name"]).name.encode()))


def perturbed_semantic(record: dict[str, Any]) -> dict[str, Any]:
    labels = np.roll(np.asarray(Image.open(record["sem_seg_file_name"])).astype(np.int64), SHIFT, axis=1)
    labels[labels == 255] = 0
    labels[::9] = generator_of(record).integers(0, 150, labels[::9].shape)
    return {"sem_seg": torch.nn.functional.one_hot(torch.as_tensor(labels), 150).permute(2, 0, 1).float()}


def perturbed_panoptic(record: dict[str, Any]) -> dict[str, Any]:
    """The true segments, moved; some are of another class, some are missing; and the things among them as instances."""
    rng = generator_of(record)
    segment_map = np.roll(rgb2id(np.asarray(Image.open(record["pan_seg_file_name"]))), SHIFT, axis=0)
    segments = [dict(segment) for segment in record["segments_info"] if rng.random() > 0.2]
    for segment in segments:
        if rng.random() < 0.1:
            segment["category_id"] = (segment["category_id"] + 1) % 80
    segment_map[~np.isin(segment_map, [segment["id"] for segment in segments])] = 0
    things = [segment for segment in segments if segment["category_id"] < 80]
    instances = Instances(segment_map.shape)
    masks = [segment_map == thing["id"] for thing in things]
    instances.pred_masks = torch.as_tensor(np.array(masks).reshape(-1, *segment_map.shape))
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.pred_classes = torch.tensor([thing["category_id"] for thing in things], dtype=torch.int64)
    instances.scores = torch.as_tensor(rng.random(len(things)))
    infos = [{"id": s["id"], "category_id": s["category_id"], "isthing": s["category_id"] < 80} for s in segments]
    return {"panoptic_seg": (torch.as_tensor(segment_map.astype(np.int32)), infos), "instances": instances}


class Perturbed(nn.Module):
    """Stands in for a model: it answers with the perturbed truth."""

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [perturbed_semantic(r) if "pan_seg_file_name" not in r else perturbed_panoptic(r) for r in batch]


def evaluate(args: argparse.Namespace) -> None:
    """In each process: measure both datasets; the main one writes the scores."""
    register_all(os.environ["DETECTRON2_DATASETS"])
    results = {}
    for name in (SEMANTIC, PANOPTIC):
        switches = ["SEMANTIC_ON", str(name == SEMANTIC), "PANOPTIC_ON", "True", "INSTANCE_ON", "True"]
        keys = [f"MODEL.MASK_FORMER.TEST.{w}" if w.endswith("_ON") else w for w in switches]
        keys += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(len(MetadataCatalog.get(name).stuff_classes))]
        loader = build_detection_test_loader(DatasetCatalog.get(name), mapper=dict, num_workers=0)
        evaluator = build_evaluator(load_config("", keys), name, str(args.output / name))
        results.update(inference_on_dataset(Perturbed(), loader, evaluator) or {})
    if comm.is_main_process():
        (args.output / "scores.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def root(samples_root: Path):
    before = os.environ.get("DETECTRON2_DATASETS")
    os.environ["DETECTRON2_DATASETS"] = str(samples_root)
    yield samples_root
    if before is None:
        del os.environ["DETECTRON2_DATASETS"]
    else:
        os.environ["DETECTRON2_DATASETS"] = before


def scores_of(output: Path, processes: int) -> dict[str, dict[str, float]]:
    args = argparse.Namespace(output=output, num_gpus=processes, num_machines=1, machine_rank=0, dist_url="auto")
    if processes == 1:  # this process may have another root already
        args.num_gpus = 1
        torch.multiprocessing.start_processes(_evaluate_alone, (args,), nprocs=1)
    else:
        run_in_processes(evaluate, args, Accelerator("cpu"))
    return json.loads((output / "scores.json").read_text())


def _evaluate_alone(_: int, args: argparse.Namespace) -> None:
    evaluate(args)


@pytest.fixture(scope="module")
def scores(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, float]], Path]:
    output = tmp_path_factory.mktemp("one")
    return scores_of(output, 1), output


def test_scores_do_not_depend_on_the_number_of_processes(scores, tmp_path: Path):
    several = scores_of(tmp_path, 2)
    assert several.keys() == {"sem_seg", "panoptic_seg", "segm"}
    for task, values in scores[0].items():
        assert several[task] == pytest.approx(values, nan_ok=True, rel=1e-12)
    for path in (f"{name}/{kind}.json" for name in (SEMANTIC, PANOPTIC) for kind in ("evaluation", "per_image")):
        assert (tmp_path / path).read_text() == (scores[1] / path).read_text()


def test_miou_is_that_of_detectron2(scores, root: Path):
    records, name = ade20k_records(root), "the_same_images_in_this_process"
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: records)
        classes = MetadataCatalog.get(SEMANTIC).stuff_classes
        MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255)
    read = {
        "sem_seg_loading_fn": lambda file, dtype: np.asarray(Image.open(file)).astype(dtype)
    }  # its own needs numpy 1
    evaluator = SemSegEvaluator(name, **read)
    evaluator.reset()
    for record in records:
        evaluator.process([record], [perturbed_semantic(record)])
    expected = evaluator.evaluate()["sem_seg"]
    assert 10 < expected["mIoU"] < 90, "a perturbation that leaves nothing, or all, shows nothing"
    ours, theirs = (
        {name: score for name, score in of.items() if "Boundary" not in name and "B-Iou" not in name}  # ours differ
        for of in (scores[0]["sem_seg"], expected)
    )
    assert ours == pytest.approx(theirs, nan_ok=True, rel=1e-12)


def ade20k_records(root: Path) -> list[dict[str, Any]]:
    base = root / "ADEChallengeData2016"
    return [
        {
            "file_name": str(path),
            "sem_seg_file_name": str(base / "annotations_detectron2/validation" / path.with_suffix(".png").name),
        }
        for path in sorted((base / "images" / "validation").glob("*.jpg"))
    ]


def coco_records(root: Path) -> list[dict[str, Any]]:
    """The images of coco_2017_val_panoptic with contiguous classes, from the JSON itself."""
    content = json.loads((root / "coco/annotations/panoptic_val2017.json").read_text())
    contiguous = contiguous_ids(content)
    return [
        {
            "image_id": annotation["image_id"],
            "file_name": str(root / "coco/val2017" / annotation["file_name"].replace(".png", ".jpg")),
            "pan_seg_file_name": str(root / "coco/panoptic_val2017" / annotation["file_name"]),
            "segments_info": [
                {**segment, "category_id": contiguous[segment["category_id"]]}
                for segment in annotation["segments_info"]
            ],
        }
        for annotation in content["annotations"]
    ]


def contiguous_ids(content: dict[str, Any]) -> dict[int, int]:
    return {category["id"]: index for index, category in enumerate(content["categories"])}


def test_pq_is_that_of_panopticapi(scores, root: Path, tmp_path: Path):
    truth = root / "coco/annotations/panoptic_val2017.json"
    content = json.loads(truth.read_text())
    dataset_ids = {index: dataset_id for dataset_id, index in contiguous_ids(content).items()}
    (tmp_path / "png").mkdir()
    annotations = []
    for record in coco_records(root):
        segment_map, infos = perturbed_panoptic(record)["panoptic_seg"]
        file_name = Path(record["pan_seg_file_name"]).name
        Image.fromarray(id2rgb(segment_map.numpy())).save(tmp_path / "png" / file_name)
        segments = [{"id": info["id"], "category_id": dataset_ids[info["category_id"]]} for info in infos]
        annotations.append({"image_id": record["image_id"], "file_name": file_name, "segments_info": segments})
    (tmp_path / "predicted.json").write_text(json.dumps({**content, "annotations": annotations}))
    expected = pq_compute(
        str(truth), str(tmp_path / "predicted.json"), str(root / "coco/panoptic_val2017"), str(tmp_path / "png")
    )
    ours = scores[0]["panoptic_seg"]
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for measure in ("pq", "sq", "rq"):
            assert ours[measure.upper() + suffix] == pytest.approx(100 * expected[group][measure], rel=1e-12)
    assert 10 < ours["PQ"] < 95


def test_ap_is_that_of_pycocotools(scores, root: Path):
    truth = COCO(str(root / "coco/annotations/instances_val2017.json"))
    dataset_ids = sorted(truth.getCatIds())
    results = []
    for record in coco_records(root):
        instances = perturbed_panoptic(record)["instances"]
        for mask, label, score in zip(instances.pred_masks, instances.pred_classes, instances.scores):
            results.append(
                {
                    "image_id": record["image_id"],
                    "category_id": dataset_ids[int(label)],
                    "segmentation": rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8))),
                    "score": float(score),
                }
            )
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ours = scores[0]["segm"]
    for name, value in zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), evaluation.stats):
        assert ours[name] == pytest.approx(100 * value, rel=1e-9)
    assert 10 < ours["AP"] < 95
