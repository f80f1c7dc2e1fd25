"""Average precision of instance masks."""

from __future__ import annotations

import os
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from maskformer.data.classes import require
from maskformer.data.json_files import read_instance_json
from maskformer.structures import InputError


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's evaluator of mask AP, for datasets whose things may lie anywhere among their classes.

    Detectron2 expects things to be the contiguous classes 0..T-1, and names of things only. Here, the class of every
    instance becomes the id that the dataset's JSON has before Detectron2 sees it.

    Args:
        dataset_name: registered, with ``json_file`` (COCO instances), ``thing_classes`` and
            ``thing_dataset_id_to_contiguous_id``.
        output_folder: where predictions are written; None: nowhere.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("thing_dataset_id_to_contiguous_id") is None:
            DatasetCatalog.get(dataset_name)  # Detectron2 fills it in when it first reads a dataset's JSON
        things = require(metadata, "thing_classes")
        contiguous_ids = metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous_ids is None:  # as Detectron2's evaluator has it: the ids are the classes
            contiguous_ids = {index: index for index in range(len(things))}
        self.dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in contiguous_ids.items()}
        if os.path.isfile(metadata.get("json_file") or ""):
            read_instance_json(metadata.json_file)  # Detectron2 and pycocotools trust it
        names = [things[contiguous_ids[dataset_id]] for dataset_id in sorted(contiguous_ids)]
        shadow = f"{dataset_name} (things)"
        if shadow in MetadataCatalog.list():
            MetadataCatalog.remove(shadow)
        MetadataCatalog.get(shadow).set(json_file=metadata.json_file, thing_classes=names)
        super().__init__(shadow, tasks=("segm",), output_dir=output_folder, use_fast_impl=False)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the instances of some images.

        Args:
            inputs: entries of the dataset; ``image_id`` is read.
            outputs: ``instances`` of each, with contiguous ``pred_classes``, and what Detectron2 wants besides.
        """
        for example, output in zip(inputs, outputs, strict=True):
            self.add(self.measure(example, output))

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Encode the instances of one image as COCO's JSON has them; see ``ImageEvaluator``."""
        instances = self._with_dataset_ids(output["instances"]).to("cpu")
        return {
            "image_id": example["image_id"],
            "instances": instances_to_coco_json(instances, example["image_id"]),
        }

    def add(self, measured: dict[str, Any]) -> None:
        """Take an image; see ``ImageEvaluator``."""
        self._predictions.append(measured)

    def _with_dataset_ids(self, instances: Instances) -> Instances:
        classes = instances.pred_classes.tolist()
        foreign = sorted(set(classes) - self.dataset_ids.keys())
        if foreign:
            raise InputError(
                f"The model predicts an instance of class {foreign[0]}, which the dataset does not count among its "
                f"{len(self.dataset_ids)} things: check MODEL.SEM_SEG_HEAD.NUM_CLASSES and DATASETS.TEST."
            )
        renamed = Instances(instances.image_size, **instances.get_fields())
        renamed.pred_classes = torch.tensor([self.dataset_ids[index] for index in classes], dtype=torch.int64)
        return renamed
