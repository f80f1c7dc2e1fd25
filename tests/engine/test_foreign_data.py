"""Training on what Detectron2's own mapper and loader give."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.structures import BoxMode
from PIL import Image
from reference_cases import reference_config

from maskformer.engine.trainer import Trainer
from maskformer.structures import InputError

NAME = "boxes_of_a_tutorial_train"


class TutorialTrainer(Trainer):
    """As Detectron2's tutorial says how to train on own data."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, True))


def load(folder: Path) -> list[dict[str, Any]]:
    """Two pictures with a polygon and one without objects, which DATALOADER.FILTER_EMPTY_ANNOTATIONS may keep."""
    polygon = {"segmentation": [[10, 10, 50, 10, 50, 40, 10, 40]], "bbox": [10, 10, 50, 40], "category_id": 3}
    records = []
    for number in range(3):
        file = folder / f"{number}.png"
        Image.fromarray(np.full((64, 80, 3), 40 * number, np.uint8)).save(file)
        annotations = [{**polygon, "bbox_mode": BoxMode.XYXY_ABS}] if number else []
        records.append({"file_name": str(file), "image_id": number, "height": 64, "width": 80})
        records[-1]["annotations"] = annotations
    return records


@pytest.fixture
def cfg(tmp_path: Path) -> Iterator[CfgNode]:
    DatasetCatalog.register(NAME, lambda: load(tmp_path))
    MetadataCatalog.get(NAME).set(thing_classes=list("abcde"))
    cfg = reference_config("base")
    changes = {
        "DATASETS.TRAIN": (NAME,),
        "DATASETS.TEST": (),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "INPUT.CROP.ENABLED": False,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "SOLVER.IMS_PER_BATCH": 3,
        "SOLVER.MAX_ITER": 2,
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    (tmp_path / "output").mkdir()
    cfg.merge_from_list([word for pair in changes.items() for word in pair])
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def train(cfg: CfgNode) -> None:
    trainer = TutorialTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_training_goes_with_detectron2s_mapper_and_loader(cfg: CfgNode, tmp_path: Path, mask_format: str):
    cfg.INPUT.MASK_FORMAT = mask_format
    train(cfg)
    (line,) = map(json.loads, (tmp_path / "output" / "metrics.json").read_text().splitlines())
    assert line["iteration"] == 1 and line["bad_steps"] == 0
    assert line["loss_mask"] > 0  # the polygons are targets


def test_boxes_alone_are_named_with_the_key_that_adds_masks(cfg: CfgNode):
    cfg.MODEL.MASK_ON = False
    with pytest.raises(InputError, match=r"\d\.png have gt_boxes, gt_classes but no gt_masks.*MODEL\.MASK_ON"):
        train(cfg)
