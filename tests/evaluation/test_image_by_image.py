"""An evaluation that is taken up by another has the scores, and writes the files, of one that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Instances

from maskformer.config import load_config
from maskformer.data.datasets import register_all
from maskformer.data.files.reading import read_segment_ids
from maskformer.demo.shapes import generate_shapes
from maskformer.evaluation import ImageByImageEvaluators, Journal, build_evaluator

NAME, IMAGES = "shapes_panoptic_val", 6
SWITCHES = ("SEMANTIC_ON", "PANOPTIC_ON", "INSTANCE_ON")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=1, num_val=IMAGES, image_size=(64, 80), seed=3)
    register_all(str(root))
    return [{**record, "dataset_index": index} for index, record in enumerate(DatasetCatalog.get(NAME))]


def imperfect_output(record: dict[str, Any]) -> dict[str, Any]:
    """The truth, moved and with random scores."""
    rng = np.random.default_rng(record["dataset_index"])
    id_map = np.roll(read_segment_ids(record["pan_seg_file_name"]), 3, axis=1).astype(np.int32)
    segments = [{k: segment[k] for k in ("id", "isthing", "category_id")} for segment in record["segments_info"]]
    labels = np.zeros(id_map.shape, dtype=np.int32)
    for segment in segments:
        labels[id_map == segment["id"]] = segment["category_id"]
    things = [segment for segment in segments if segment["isthing"]]
    masks = torch.as_tensor(np.array([id_map == thing["id"] for thing in things]).reshape(-1, *id_map.shape))
    found = Instances(id_map.shape)
    found.pred_masks, found.pred_boxes = masks, BitMasks(masks).get_bounding_boxes()
    found.scores = torch.as_tensor(rng.random(len(things), dtype=np.float32))
    found.pred_classes = torch.tensor([thing["category_id"] for thing in things], dtype=torch.int64)
    return {"sem_seg": torch.as_tensor(labels), "panoptic_seg": (torch.as_tensor(id_map), segments), "instances": found}


def evaluator(folder: Path) -> ImageByImageEvaluators:
    words = [word for switch in SWITCHES for word in (f"MODEL.MASK_FORMER.TEST.{switch}", "True")]
    cfg = load_config("", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "9", *words])
    return build_evaluator(cfg, NAME, str(folder))


def process(measure: ImageByImageEvaluators, records: list[dict[str, Any]]) -> None:
    measure.reset()
    for record in records:
        measure.process([record], [imperfect_output(record)])


def draw(example: dict[str, Any], truth: dict[str, Any], output: dict[str, Any]) -> dict[str, np.ndarray]:
    """The panoptic segments, black and white."""
    maps = {"picture": torch.zeros(4, 4), "truth": truth["panoptic_seg"][0], "prediction": output["panoptic_seg"][0]}
    return {layer: (ids.numpy() % 2 * 255).astype(np.uint8) for layer, ids in maps.items()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".json", ".jpg")}


@pytest.mark.parametrize("first", [4, IMAGES])
def test_scores_and_files_are_those_of_an_evaluation_that_was_not_stopped(records, tmp_path: Path, first: int):
    whole = evaluator(tmp_path / "whole")
    whole.keep_in(Journal(str(tmp_path / "whole"), "a", resume=True), draw)
    process(whole, records)
    expected = whole.evaluate()
    assert expected.keys() == {"sem_seg", "panoptic_seg", "segm"}
    assert {"evaluation.json", "per_image.json", "pictures.json", "0000_truth.jpg"} <= files(tmp_path / "whole").keys()

    stopped = evaluator(tmp_path / "parts")
    stopped.keep_in(Journal(str(tmp_path / "parts"), "a", resume=True), draw)
    process(stopped, records[IMAGES - first :])  # not the first of the dataset: another process had those
    resumed = evaluator(tmp_path / "parts")
    journal = Journal(str(tmp_path / "parts"), "a", resume=True)
    resumed.keep_in(journal, draw)
    process(resumed, [record for record in records if record["dataset_index"] not in journal.done])
    assert len(journal.done) == first
    assert json.dumps(resumed.evaluate()) == json.dumps(expected)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert not list((tmp_path / "parts").glob("partial-*"))


def test_without_a_journal_the_scores_of_images_are_the_same(records, tmp_path: Path):
    for name, journal in (("journal", Journal(str(tmp_path / "journal"), "a", resume=True)), ("memory", None)):
        measure = evaluator(tmp_path / name)
        if journal is not None:
            measure.keep_in(journal)
        process(measure, records)
        measure.evaluate()
        assert len(json.loads((tmp_path / name / "per_image.json").read_text())["images"]) == IMAGES
    assert files(tmp_path / "journal") == files(tmp_path / "memory")


def test_evaluators_without_a_folder_need_no_index_of_images(records):
    cfg = load_config("", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "9"])
    measure = build_evaluator(cfg, NAME)
    example = {key: value for key, value in records[0].items() if key != "dataset_index"}
    measure.reset()
    measure.process([example], [imperfect_output(records[0])])
    assert measure.evaluate()["sem_seg"]["mIoU"] > 0
