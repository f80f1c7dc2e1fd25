"""Pictures of a few validation images beside their truth and what the model sees, the same ones at each evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from torch import nn

from maskformer.data.checks.verification import load_dataset
from maskformer.data.datasets.classes import ignore_label_of
from maskformer.data.files.reading import read_label_map, read_segment_ids
from maskformer.data.mappers.instance import draw_layers
from maskformer.data.mappers.table import build_mapper
from maskformer.structures import PanopticResult

from .test_time import inference_options, innermost

LONGEST_SIDE = 512  # pixels, of each of the three
GAP = 8  # pixels between them


class ValidationPictures:
    """Draws picture, truth and prediction side by side; for the main process.

    Args:
        cfg: ``TEST.PICTURES`` and what images are loaded with are read.
    """

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg
        self._mapper = build_mapper(cfg, is_train=False)
        self._records: list[dict[str, Any]] | None = None

    def draw(self, model: nn.Module) -> dict[str, np.ndarray]:
        """The pictures by name, each (height,width,3) uint8 RGB; none where the dataset is not ours to load.

        Args:
            model: may be one that several processes train; only this one is asked.
        """
        name, model = self._cfg.DATASETS.TEST[0], innermost(model)
        if self._records is None:
            records = load_dataset(name, "DATASETS.TEST") if name in DatasetCatalog else []
            count = min(self._cfg.TEST.PICTURES, len(records))
            self._records = [records[index * len(records) // count] for index in range(count)]
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), inference_options(model, semantic_as_labels=True):
                return {_name_of(record): self._draw_one(model, name, record) for record in self._records}
        finally:
            model.train(was_training)

    def _draw_one(self, model: nn.Module, dataset: str, record: dict[str, Any]) -> np.ndarray:
        from maskformer.reports import tasks  # with Matplotlib, which a training without pictures need not load

        example = self._mapper(record)
        image = np.ascontiguousarray(example["image"].numpy().transpose(1, 2, 0))
        image = image if self._cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
        scale = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
        height, width = (max(1, round(scale * length)) for length in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        output = model([{**example, "height": height, "width": width}])[0]
        classes = tasks.ClassTable.of(getattr(model, "classes", None), self._cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        task = next(task for task in tasks.TASKS.values() if task.key in output)
        truth = _read_truth(record, dataset, len(classes), is_semantic=task.name == "semantic")
        if isinstance(truth, PanopticResult):
            segments = _resize(truth.segment_map.numpy(), (height, width))
            true = tasks.draw_panoptic(image, PanopticResult(torch.from_numpy(segments), truth.segments_info), classes)
        elif truth is not None:
            true = tasks.draw_semantic(image, _resize(truth, (height, width)), classes)
        else:
            true = np.full_like(image, 255)
        gap = np.full((height, GAP, 3), 255, dtype=np.uint8)
        return np.concatenate([image, gap, true, gap, task.draw(image, task.read(output), classes)], axis=1)


def _name_of(record: Mapping[str, Any]) -> str:
    return f"validation/{Path(record['file_name']).stem}"


def _read_truth(
    record: Mapping[str, Any], dataset: str, num_classes: int, *, is_semantic: bool
) -> PanopticResult | np.ndarray | None:
    """What a record says of its image: segments, or the class of each pixel; None where it says nothing."""
    if is_semantic and "sem_seg_file_name" in record:
        metadata = MetadataCatalog.get(dataset)
        values = metadata.get("label_values")
        return read_label_map(record["sem_seg_file_name"], num_classes, ignore_label_of(metadata), values)
    if "pan_seg_file_name" in record and "segments_info" in record:
        ids = read_segment_ids(record["pan_seg_file_name"]).astype(np.int32)
        segments = [{"isthing": True, **segment} for segment in record["segments_info"]]
        return PanopticResult(torch.from_numpy(ids), segments)
    if "annotations" in record:
        return _lay_instances(record["annotations"], (record["height"], record["width"]))
    return None


def _lay_instances(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> PanopticResult:
    """Annotated instances on one map, a later one over an earlier one where they overlap."""
    segment_map = np.zeros(size, dtype=np.int32)
    for layer in draw_layers([annotation["segmentation"] for annotation in annotations], T.NoOpTransform(), size):
        segment_map = np.where(layer > 0, layer, segment_map).astype(np.int32)
    segments = [
        {"id": number, "isthing": True, "category_id": annotation["category_id"]}
        for number, annotation in enumerate(annotations, start=1)
    ]
    return PanopticResult(torch.from_numpy(segment_map), segments)


def _resize(integer_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The nearest pixel of a map at each place of a grid of another size."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, integer_map.shape, strict=True)
    )
    return integer_map[rows[:, None], columns]
