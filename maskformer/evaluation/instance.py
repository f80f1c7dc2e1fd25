"""Average precision of instance masks."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BitMasks, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer.data.datasets.classes import require
from maskformer.data.files.json_files import instances_of_records, read_instance_json
from maskformer.structures import InputError

from .confusion import ObjectRow, confuse_objects, score_objects
from .evaluator import ImageEvaluator, Records
from .results import SIZES, size_of

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # in the order of pycocotools' ``stats``
CERTAIN = 0.5  # predictions that score more are compared object by object


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
        self._images = {image["id"]: image for image in self._content["images"]}

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
        instances = instances_to_coco_json(renamed, image_id)
        certain = [instance for instance in instances if instance["score"] > CERTAIN]
        objects = match_masks(self._encoded_truth(image_id), certain)
        return {"image_id": image_id, "instances": instances, "objects": objects}

    def _encoded_truth(self, image_id: Any) -> list[dict[str, Any]]:
        """The annotations of one image, with masks as COCO's compressed run lengths."""
        size = self._images[image_id]["height"], self._images[image_id]["width"]
        annotated = self._annotations_of_image.get(image_id, [])
        return [{**each, "segmentation": _encode(each["segmentation"], size)} for each in annotated]

    @cached_property
    def _annotations_of_image(self) -> dict[Any, list[dict[str, Any]]]:
        of_image: dict[Any, list[dict[str, Any]]] = {}
        for annotation in self._content["annotations"]:
            of_image.setdefault(annotation["image_id"], []).append(annotation)
        return of_image

    def score_image(self, measured: Any) -> dict[str, dict[str, float]]:
        """Panoptic quality of the objects of one image, of predictions that score above 1/2."""
        return {"segm": {"InstancePQ": score_objects(measured["objects"])}}

    def truth(self, example: dict[str, Any]) -> dict[str, Any]:
        """The annotated objects, with contiguous classes and a score of 1."""
        image_id = self._image_id(example, self._content)
        size = self._images[image_id]["height"], self._images[image_id]["width"]
        class_of_id = {id_: index for index, id_ in self.dataset_ids.items()}
        annotated = self._encoded_truth(image_id)
        masks = np.array([mask_util.decode(each["segmentation"]) for each in annotated], dtype=bool)
        objects = Instances(size, pred_masks=torch.as_tensor(masks.reshape(-1, *size)))
        objects.pred_boxes = BitMasks(objects.pred_masks).get_bounding_boxes()
        objects.scores = torch.ones(len(annotated))
        objects.pred_classes = torch.tensor([class_of_id[each["category_id"]] for each in annotated], dtype=torch.int64)
        return {"instances": objects}

    def score(self, measured: list[Any]) -> dict[str, dict[str, float]]:
        """AP over overlaps and by size, and of each class, of the images shown.

        Where nothing is predicted, or nothing annotated, a score is nan.
        """
        found = [entry for prediction in measured for entry in prediction["instances"]]
        self._write("coco_instances_results.json", found)
        image_ids = sorted({prediction["image_id"] for prediction in measured})
        objects = [row for prediction in measured for row in prediction["objects"]]
        if not found:
            logger.warning("The model predicts no instance in %d images: mask AP is undefined.", len(measured))
            nothing = {"AP": float("nan"), "AP50": float("nan")}
            scores, of_class = dict.fromkeys(_METRICS, float("nan")), [nothing] * len(self._names)
        else:
            # Without boxes: else pycocotools takes theirs as the areas of the masks.
            masks = [{key: value for key, value in entry.items() if key != "bbox"} for entry in found]
            scores, of_class = self._score(masks, image_ids)
        self.details = self._describe(scores, of_class, image_ids, objects)
        return {"segm": scores}

    def _score(
        self, masks: list[dict[str, Any]], image_ids: list[Any]
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """The scores by name; and AP and AP50 of each class."""
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
        precision = evaluation.eval["precision"]  # (overlaps, recalls, classes, sizes, limits); -1: undefined
        of_class = [
            {"AP": _mean(precision[:, :, index, 0, -1]), "AP50": _mean(precision[0, :, index, 0, -1])}
            for index in range(len(self._names))
        ]
        if len(self._names) > 1:
            scores.update({f"AP-{name}": each["AP"] for name, each in zip(self._names, of_class, strict=True)})
        return scores, of_class

    def _describe(
        self,
        scores: dict[str, float],
        of_class: Sequence[Mapping[str, float]],
        image_ids: Sequence[Any],
        objects: Sequence[ObjectRow],
    ) -> dict[str, Any]:
        """See ``ImageEvaluator.details``."""
        annotated = [each for image_id in image_ids for each in self._annotations_of_image.get(image_id, [])]
        counted = [each for each in annotated if not each["iscrowd"]]
        of_category = Counter(each["category_id"] for each in counted)
        of_size = Counter(size_of(each["area"]) for each in counted)
        ids = sorted(self.dataset_ids.values())
        rows = [
            {"class": name, **scores_of_class, "objects": of_category[id_]}
            for name, id_, scores_of_class in zip(self._names, ids, of_class, strict=True)
        ]
        by_size = [
            {"kind": "segm", "measure": "AP", "size": size, "objects": of_size[index], "score": scores[metric]}
            for index, (size, metric) in enumerate(zip(SIZES, ("APs", "APm", "APl"), strict=True))
        ]
        place = {id_: index for index, id_ in enumerate(ids)}
        return {
            "per_class": {"segm": rows},
            "confusion": confuse_objects(objects, place, self._names),
            "by_size": by_size,
        }


def match_masks(truth: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[ObjectRow]:
    """Find the prediction of each object of one image: with an IoU above 1/2, rather one of its category than another.

    Args:
        truth: "segmentation" (COCO's compressed run lengths), "category_id", "iscrowd" and "area" of each object.
        found: "segmentation" and "category_id" of each prediction.

    Returns:
        A row of each object that is no crowd, and of each other prediction, unless it is mostly in a crowd of its
        category.
    """
    if not truth:
        return [(None, prediction["category_id"], None, None) for prediction in found]
    masks = [[each["segmentation"] for each in part] for part in (found, truth)]
    crowds = [each["iscrowd"] for each in truth]
    overlaps = np.array(mask_util.iou(*masks, crowds)).reshape(len(found), len(truth))
    candidates = []
    excused: set[int] = set()
    for index, number in np.argwhere(overlaps > 0.5).tolist():
        is_same = found[index]["category_id"] == truth[number]["category_id"]
        if not crowds[number]:
            candidates.append((is_same, overlaps[index, number], index, number))
        elif is_same:
            excused.add(index)
    rows: list[ObjectRow] = []
    of_truth, of_found = {i: each for i, each in enumerate(truth) if not each["iscrowd"]}, dict(enumerate(found))
    for _, iou, index, number in sorted(candidates, reverse=True):
        if index in of_found and number in of_truth:
            true = of_truth.pop(number)
            rows.append((int(true["category_id"]), of_found.pop(index)["category_id"], true["area"], float(iou)))
    rows += [(int(each["category_id"]), None, each["area"], None) for each in of_truth.values()]
    return rows + [(None, each["category_id"], None, None) for i, each in of_found.items() if i not in excused]


def _encode(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths of polygons, or of run lengths of either kind, as pycocotools draws them."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, *size))
    is_compressed = isinstance(segmentation["counts"], (str, bytes))
    return segmentation if is_compressed else mask_util.frPyObjects(segmentation, *size)


def _mean(precision: np.ndarray) -> float:
    defined = precision[precision > -1]
    return _percent(defined.mean() if defined.size else -1)


def _percent(score: float) -> float:
    return 100 * float(score) if score > -1 else float("nan")
