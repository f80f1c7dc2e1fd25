from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from maskformer.config import load_config
from maskformer.engine.pictures import GAP, ValidationPictures
from maskformer.evaluation import MEASURES, ImageEvaluator
from maskformer.structures import Classes

NAME = "pictures_val"
CLASSES = Classes(NAME, ("left", "right"), colors=((255, 0, 0), (0, 0, 255)), things=frozenset({1}))
WIDTH, HEIGHT = 400, 200


class Halves(nn.Module):
    """Sees the right class on the upper half, whatever it is shown, and refuses to be trained."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.classes = kind, CLASSES

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not self.training and not torch.is_grad_enabled()
        labels = torch.zeros(batch[0]["height"], batch[0]["width"], dtype=torch.int32)
        labels[: len(labels) // 2] = 1
        if self.kind == "instances":
            found = Instances(labels.shape, pred_masks=labels[None] > 0, scores=torch.ones(1))
            found.pred_classes = torch.tensor([1])
            return [{"instances": found}]
        segments = [{"id": 1, "isthing": True, "category_id": 1}]
        return [{self.kind: labels if self.kind == "sem_seg" else (labels, segments)}]


@pytest.fixture
def cfg(tmp_path: Path) -> Any:
    """Ten grey pictures of 200 x 400 pixels, of which the right half is of class 1."""
    Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(tmp_path / "grey.png")
    right = np.zeros((HEIGHT, WIDTH), np.uint8)
    right[:, WIDTH // 2 :] = 1
    Image.fromarray(right).save(tmp_path / "label.png")
    Image.fromarray(np.stack([right, 0 * right, 0 * right], axis=-1)).save(tmp_path / "ids.png")
    record = {
        "sem_seg_file_name": str(tmp_path / "label.png"),
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "segments_info": [{"id": 1, "category_id": 1, "isthing": True}],
        "annotations": [{"category_id": 1, "segmentation": [[200, 0, 400, 0, 400, 200, 200, 200]], "iscrowd": 0}],
        **{"height": HEIGHT, "width": WIDTH, "file_name": str(tmp_path / "grey.png")},
    }
    records: list[dict[str, Any]] = []
    for index in range(10):
        (tmp_path / f"{index}.png").symlink_to(tmp_path / "grey.png")
        records.append({**record, "file_name": str(tmp_path / f"{index}.png"), "image_id": index})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        stuff_classes=list(CLASSES.names),
        thing_classes=list(CLASSES.names),
        stuff_colors=list(CLASSES.colors),
        thing_colors=list(CLASSES.colors),
    )
    options = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", f"('{NAME}',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]
    options += ["LOG.PICTURES", "3", "INPUT.MIN_SIZE_TEST", "20"]
    yield load_config("", options)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def reddish(pixels: np.ndarray) -> float:
    """The share of pixels that are more red than blue, less that of those that are more blue."""
    difference = pixels[..., 0].astype(int) - pixels[..., 2]
    return float((difference > 20).mean() - (difference < -20).mean())


@pytest.mark.parametrize(
    ("kind", "switch"), [("sem_seg", "SEMANTIC_ON"), ("panoptic_seg", "PANOPTIC_ON"), ("instances", "INSTANCE_ON")]
)
def test_picture_truth_and_prediction_stand_side_by_side(cfg: CfgNode, kind: str, switch: str):
    cfg.MODEL.MASK_FORMER.TEST[switch] = True
    model = Halves(kind).train()
    pictures = ValidationPictures(cfg)
    drawn = pictures.draw(model)
    assert list(drawn) == ["validation/0", "validation/3", "validation/6"] and model.training
    for name, again in pictures.draw(model).items():
        np.testing.assert_array_equal(drawn[name], again)
    picture = drawn["validation/0"]
    assert picture.shape == (HEIGHT, 3 * WIDTH + 2 * GAP, 3) and picture.dtype == np.uint8
    image, truth, prediction = (picture[:, start : start + WIDTH] for start in range(0, 2 * WIDTH + 99, WIDTH + GAP))
    assert (image == 90).all()
    assert reddish(truth[:, WIDTH // 2 + 8 :]) < -0.5 and reddish(truth[:, : WIDTH // 2 - 8]) >= 0
    assert reddish(prediction[: HEIGHT // 2 - 8]) < -0.5 and reddish(prediction[HEIGHT // 2 + 8 :]) >= 0


def test_dataset_that_is_not_registered_has_no_pictures(cfg: CfgNode):
    cfg.DATASETS.TEST = ("of_a_subclass",)
    assert ValidationPictures(cfg).draw(Halves("sem_seg")) == {}


def test_no_pictures_are_drawn_where_none_are_asked_for(cfg: CfgNode):
    cfg.LOG.PICTURES = 0
    assert ValidationPictures(cfg).draw(Halves("sem_seg")) == {}


def test_evaluator_of_others_without_truth_has_no_pictures(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    class Theirs(ImageEvaluator):
        switch, entry_key = "SEMANTIC_ON", "sem_seg_file_name"

    monkeypatch.setitem(MEASURES, "theirs", (Theirs,))
    MetadataCatalog.get(NAME).evaluator_type = "theirs"
    assert ValidationPictures(cfg).draw(Halves("sem_seg")) == {}
