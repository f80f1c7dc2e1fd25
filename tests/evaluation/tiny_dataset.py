"""A dataset of one 4 x 6 image with two cats (things, class 2) on grass (stuff, class 0) under sky (stuff, class 1).

Class ids are chosen so that things come last and dataset ids differ from contiguous ones: grass 5, sky 3, cat 9.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

NAME = "tiny_panoptic"
SKY, GRASS, CATS = 10, 20, (30, 40)
SEGMENT_MAP = np.array(
    [
        [10, 10, 10, 10, 10, 10],
        [10, 30, 30, 40, 40, 10],
        [20, 30, 30, 40, 40, 20],
        [20, 20, 20, 20, 20, 20],
    ],
    dtype=np.int32,
)
CONTIGUOUS = {10: 1, 20: 0, 30: 2, 40: 2}
DATASET_ID = {0: 5, 1: 3, 2: 9}
NUM_CLASSES = 3


def register(root: Path, *, evaluator_type: str = "coco_panoptic_seg", with_instances: bool = True) -> None:
    """Write the dataset under a folder and register it as ``NAME``, in place of an earlier one."""
    (root / "panoptic").mkdir(exist_ok=True)
    label = np.vectorize(CONTIGUOUS.get)(SEGMENT_MAP).astype(np.uint8)
    Image.fromarray(label).save(root / "label.png")
    rgb = np.stack([SEGMENT_MAP % 256, SEGMENT_MAP // 256, SEGMENT_MAP * 0], axis=2).astype(np.uint8)
    Image.fromarray(rgb).save(root / "panoptic" / "image.png")
    image = {"id": 7, "file_name": "image.jpg", "height": 4, "width": 6}
    segments = [
        {"id": id_, "category_id": DATASET_ID[index], "iscrowd": 0, "area": int((id_ == SEGMENT_MAP).sum())}
        for id_, index in CONTIGUOUS.items()
    ]
    names = {5: ("grass", 0), 3: ("sky", 0), 9: ("cat", 1)}
    categories = [{"id": id_, "name": name, "isthing": isthing} for id_, (name, isthing) in names.items()]
    panoptic = {"image_id": 7, "file_name": "image.png", "segments_info": segments}
    _write(root / "panoptic.json", images=[image], annotations=[panoptic], categories=categories)
    cats = [_annotation(index, id_ == SEGMENT_MAP) for index, id_ in enumerate(CATS, start=1)]
    _write(root / "instances.json", images=[image], annotations=cats, categories=categories[2:])
    record = {"file_name": "image.jpg", "image_id": 7, "sem_seg_file_name": str(root / "label.png")}
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: [record])
    MetadataCatalog.get(NAME).set(
        evaluator_type=evaluator_type,
        stuff_classes=["grass", "sky", "cat"],
        thing_classes=["grass", "sky", "cat"],
        thing_dataset_id_to_contiguous_id={9: 2},
        stuff_dataset_id_to_contiguous_id={5: 0, 3: 1, 9: 2},
        ignore_label=255,
        label_divisor=1000,
        panoptic_root=str(root / "panoptic"),
        panoptic_json=str(root / "panoptic.json"),
        json_file=str(root / "instances.json") if with_instances else None,
    )


INPUTS = [{"file_name": "image.jpg", "image_id": 7, "height": 4, "width": 6}]


def perfect_output() -> dict[str, Any]:
    """What a model that makes no mistake returns for the image."""
    label = torch.as_tensor(np.vectorize(CONTIGUOUS.get)(SEGMENT_MAP))
    segments = [{"id": id_, "isthing": id_ in CATS, "category_id": index} for id_, index in CONTIGUOUS.items()]
    return {
        "sem_seg": torch.nn.functional.one_hot(label, NUM_CLASSES).permute(2, 0, 1).float(),
        "panoptic_seg": (torch.tensor(SEGMENT_MAP), segments),
        "instances": instances([id_ == SEGMENT_MAP for id_ in CATS], classes=[2, 2]),
    }


def instances(masks: list[np.ndarray], classes: list[int]) -> Instances:
    """Instances of equal score."""
    stacked = torch.as_tensor(np.array(masks, dtype=bool).reshape(-1, 4, 6))
    return Instances(
        (4, 6),
        pred_masks=stacked,
        pred_boxes=Boxes(torch.zeros(len(masks), 4)),
        scores=torch.full((len(masks),), 0.9),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


def _annotation(index: int, mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {**encoded, "counts": encoded["counts"].decode()}
    box = mask_util.toBbox(encoded).tolist()
    area = int(mask.sum())
    return {
        "id": index,
        "image_id": 7,
        "category_id": 9,
        "iscrowd": 0,
        "area": area,
        "bbox": box,
        "segmentation": segmentation,
    }


def _write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))
