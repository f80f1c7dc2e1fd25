"""Pictures of a few validation images beside their truth and what the model sees, the same ones at each evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from maskformer.data.checks.verification import load_dataset
from maskformer.data.mappers.table import build_mapper
from maskformer.evaluation import build_evaluator

from .test_time import inference_options, innermost

GAP = 8  # pixels between image, truth and prediction
_PREFERRED = ("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON")  # of what the model gives and the dataset can judge


class ValidationPictures:
    """Draws image, truth and prediction side by side; for the main process.

    Args:
        cfg: the whole config; ``LOG.PICTURES`` says how many there are.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        self._chosen: list[tuple[dict[str, Any], dict[str, Any]]] | None = None  # entries of the dataset and truths

    def draw(self, model: nn.Module) -> dict[str, np.ndarray]:
        """The pictures by name, each (height,width,3) uint8 RGB; none where the key is 0 or the dataset not registered.

        Args:
            model: may be one that several processes train; only this one is asked.
        """
        from maskformer.reports.comparison import Comparison  # here: importing the package loads no Matplotlib

        model, cfg = innermost(model), self.cfg
        if self._chosen is None:
            self._chosen = self._choose()
        drawing = Comparison(
            cfg.DATASETS.TEST[0], num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, image_format=cfg.INPUT.FORMAT
        )
        mapper, pictures, was_training = build_mapper(cfg, is_train=False), {}, model.training
        model.eval()
        try:
            with torch.no_grad(), inference_options(model, semantic_as_labels=True):
                for record, truth in self._chosen:
                    example = mapper(record)
                    parts = drawing(example, truth, model([example])[0])
                    name = f"validation/{Path(record['file_name']).stem}"
                    pictures[name] = _join([parts["picture"], parts["truth"], parts["prediction"]])
        finally:
            model.train(was_training)
        return pictures

    def _choose(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        name = self.cfg.DATASETS.TEST[0]
        # A subclass of the trainer may evaluate what is not registered.
        if not self.cfg.LOG.PICTURES or name not in DatasetCatalog:
            return []
        records = load_dataset(name, "DATASETS.TEST")
        of_switch = {evaluator.switch: evaluator for evaluator in build_evaluator(self.cfg, name).evaluators}
        evaluator = next(of_switch[switch] for switch in _PREFERRED if switch in of_switch)
        count = min(self.cfg.LOG.PICTURES, len(records))
        chosen = [records[index * len(records) // count] for index in range(count)]
        return [(record, truth) for record in chosen if (truth := evaluator.truth(record))]


def _join(pictures: list[np.ndarray]) -> np.ndarray:
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=1)
