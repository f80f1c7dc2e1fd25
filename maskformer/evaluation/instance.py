"""Average precision of instance masks."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer.data.datasets.classes import require
from maskformer.data.files.json_files import instances_of_records, read_instance_json
from maskformer.structures import InputError

from .evaluator import ImageEvaluator, Records

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in the order of pycocotools' ``stats``


class InstanceEvaluator(ImageEvaluator):
    """Mask AP as pycocotools computes it and Detectron2 names it, of things anywhere among a dataset's classes.

    The dataset has ``thing_classes`` in its metadata and, where its classes are not 0, 1, ..,
    ``thing_dataset_id_to_contiguous_id``. The truth is its ``json_file`` (COCO instances) or, without one, the
    ``annotations`` of its entries. ``instances`` of an output is read, with contiguous ``pred_classes``, ``scores``,
    ``pred_boxes`` and ``pred_masks``.
    """

    switch = "INSTANCE_ON"
    entry_key, json_key = "annotations", "json_file"

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        super().__init__(dataset_name, output_folder)
        records = DatasetCatalog.get(dataset_name)  # first: Detectron2 completes the metadata as it reads
        self._json_file = self.metadata.get("json_file")
        names = self.metadata.get("thing_classes")
        if self._json_file is not None:
            self._content = read_instance_json(self._json_file)
            table = self.metadata.get("thing_dataset_id_to_contiguous_id")
            if table is not None:
                self.dataset_ids = {index: id_ for id_, index in table.items()}
            else:
                self.dataset_ids = self._ids_by_name(names, self._content["categories"], self._json_file)
        else:
            names = require(self.metadata, "thing_classes")
            self._content = instances_of_records(records, names, f"dataset {dataset_name}")
            self.dataset_ids = {index: index for index in range(len(names))}
        self._use_categories(names)

    def _use_categories(self, names: Sequence[str] | None) -> None:
        """Have the things of the dataset as the categories of the truth, which may list others that it does not use."""
        used = {annotation["category_id"] for annotation in self._content["annotations"]}
        foreign = sorted(used - set(self.dataset_ids.values()))
        if foreign:
            raise InputError(
                f"{self._json_file} has instances of the category {foreign[0]}, which is none of the "
                f"{len(self.dataset_ids)} things of the dataset (thing_dataset_id_to_contiguous_id of its metadata); "
                "expected those alone."
            )
        of_id = {category["id"]: category["name"] for category in self._content["categories"]}
        of_id.update({id_: names[index] for index, id_ in self.dataset_ids.items() if names and index < len(names)})
        ids = sorted(self.dataset_ids.values())
        self._names = [of_id.get(id_, str(id_)) for id_ in ids]
        self._content["categories"] = [{"id": id_, "name": name} for id_, name in zip(ids, self._names)]
        # From 1: pycocotools writes the id of what it matched into an array, where 0 stands for nothing.
        for number, annotation in enumerate(self._content["annotations"], start=1):
            annotation["id"] = number
        self._images = {image["id"] for image in self._content["images"]}

    def check(self, records: Records) -> None:
        """Raise an ``InputError`` where the truth has nothing of an image of the dataset."""
        if self._json_file is not None:
            self._refuse_unknown_images(records, self._images, self._json_file)

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Encode the instances of one image as COCO's JSON has them; see ``ImageEvaluator``."""
        self.check([example])
        image_id = self._image_id(example, self._content)
        found = output["instances"].to("cpu")
        renamed = Instances(found.image_size, **found.get_fields())
        renamed.pred_classes = torch.tensor(self._ids_of_things(found, self.dataset_ids), dtype=torch.int64)
        return {"image_id": image_id, "instances": instances_to_coco_json(renamed, image_id)}

    def score(self, measured: list[Any]) -> dict[str, dict[str, float]]:
        """AP over overlaps and by size, and of each class, of the images shown.

        Where nothing is predicted, or nothing annotated, a score is nan.
        """
        found = [entry for prediction in measured for entry in prediction["instances"]]
        self._write("coco_instances_results.json", found)
        if not found:
            logger.warning("The model predicts no instance in %d images: mask AP is undefined.", len(measured))
            return {"segm": dict.fromkeys(_METRICS, float("nan"))}
        # Without boxes: else pycocotools takes theirs as the areas of the masks.
        masks = [{key: value for key, value in entry.items() if key != "bbox"} for entry in found]
        return {"segm": self._score(masks, sorted({prediction["image_id"] for prediction in measured}))}

    def _score(self, masks: list[dict[str, Any]], image_ids: list[Any]) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            truth = COCO()
            truth.dataset = self._content
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(masks), "segm")
            evaluation.params.imgIds = image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        logger.info("Evaluation results for mask AP:\n%s", printed.getvalue())
        scores = {name: _percent(score) for name, score in zip(_METRICS, evaluation.stats)}
        if len(self._names) > 1:
            precision = evaluation.eval["precision"]  # (overlaps, recalls, classes, sizes, limits); -1: undefined
            for index, name in enumerate(self._names):
                of_class = precision[:, :, index, 0, -1]
                of_class = of_class[of_class > -1]
                scores[f"AP-{name}"] = _percent(of_class.mean() if of_class.size else -1)
        return scores


def _percent(score: float) -> float:
    return 100 * float(score) if score > -1 else float("nan")
