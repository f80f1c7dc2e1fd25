"""Panoptic quality of a dataset, as panopticapi defines it, of arrays instead of files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from panopticapi.evaluation import PQStat
from tabulate import tabulate

from maskformer.data.datasets.classes import require
from maskformer.data.files.json_files import join_inside, panoptic_of_records, read_panoptic_json
from maskformer.data.files.reading import check_same_size, read_segment_ids
from maskformer.structures import InputError

from .confusion import ObjectRow, confuse_objects, score_objects_by_size
from .evaluator import ImageEvaluator, Records

logger = logging.getLogger(__name__)

METRICS = ("PQ", "SQ", "RQ")  # panoptic quality, segmentation quality, recognition quality
VOID = 0  # the id of pixels that belong to no segment
_ID_BITS = 32

Pairs = dict[tuple[int, int], int]


class PanopticEvaluator(ImageEvaluator):
    """Panoptic quality as panopticapi defines it, of each image when it is predicted, instead of all at the end.

    It has the scores of Detectron2's evaluator and writes its file. Areas are counted, whatever the JSON says of them;
    and where no thing, or no stuff, is annotated or predicted, that part alone is undefined. The truth is the dataset's
    ``panoptic_json`` with ``panoptic_root`` or, without them, ``pan_seg_file_name`` and ``segments_info`` of its
    entries.

    It reads ``panoptic_seg`` of an output: ids (height,width), 0 for void, and ``segments_info``; or category id x
    ``label_divisor`` + number, -1 for void, and None.
    """

    switch = "PANOPTIC_ON"
    entry_key, json_key = "pan_seg_file_name", "panoptic_json"

    def check(self, records: Records) -> None:
        """Read the truth, and raise an ``InputError`` where it does not fit the images and classes of the dataset."""
        table = self._dataset_ids
        unknown = sorted({*table[0].values(), *table[1].values()} - self._things_and_stuff.keys())
        if unknown:
            raise InputError(
                f"Dataset {self.name} has a class of the category {unknown[0]} in its metadata, which is none of the "
                f"{len(self._things_and_stuff)} of {self._source}; expected those of the JSON."
            )
        if self._json_file is not None:
            self._refuse_unknown_images(records, self._annotations, self._json_file)
            self._check_all({record["image_id"] for record in records}, "entry in the dataset")

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Compare one image with its label; see ``ImageEvaluator``."""
        file_name = example["file_name"]
        id_map, segments = output["panoptic_seg"]
        id_map = id_map.cpu().numpy()
        if segments is None:
            segments = self._decode_segments(id_map)
            id_map = id_map + 1
        segments = [self._with_dataset_id(dict(segment), file_name) for segment in segments]
        if self._json_file is not None:
            self._refuse_unknown_images([example], self._annotations, self._json_file)
        image_id = self._image_id(example, self._content)
        annotation = self._annotations[image_id]
        label = read_segment_ids(annotation["file_name"])
        check_same_size(id_map, file_name, label, annotation["file_name"])
        pairs = count_pairs(label, id_map)
        predicted = {segment["id"]: segment["category_id"] for segment in segments}
        self._check_prediction(file_name, pairs, predicted)
        objects = match_segments(pairs, annotation["segments_info"], predicted)
        counts = count_matches(objects)
        return {
            "image_id": image_id,
            "file_name": f"{Path(file_name).stem}.png",
            "segments_info": segments,
            "counts": [[id_, count.iou, count.tp, count.fp, count.fn] for id_, count in counts.pq_per_cat.items()],
            "objects": objects,
        }

    def score(self, measured: list[Any]) -> dict[str, dict[str, Any]]:
        """Panoptic quality of all things, of all stuff, and of both."""
        keys = ("image_id", "file_name", "segments_info")
        annotations = [{key: prediction[key] for key in keys} for prediction in measured]
        self._write("predictions.json", {**self._content, "annotations": annotations})
        of_image = {prediction["image_id"]: prediction["counts"] for prediction in measured}
        self._check_all(of_image, "prediction")
        totals = _sum_counts(of_image[image_id] for image_id in self._annotations)
        self.details = self._describe(totals, [row for prediction in measured for row in prediction["objects"]])
        return {"panoptic_seg": _report(totals, self._things_and_stuff)}

    def score_image(self, measured: Any) -> dict[str, dict[str, float]]:
        """The means over the categories that label or prediction have."""
        counts = _sum_counts([measured["counts"]])
        return {"panoptic_seg": average_quality(counts, list(counts.pq_per_cat))[0]}

    def truth(self, example: dict[str, Any]) -> dict[str, Any]:
        """The segments of the label, with contiguous classes."""
        annotation = self._annotations[self._image_id(example, self._content)]
        segments = [
            {
                "id": segment["id"],
                "category_id": self._class_of_id[category],
                "isthing": self._things_and_stuff[category],
            }
            for segment in annotation["segments_info"]
            if (category := segment["category_id"]) in self._class_of_id
        ]
        return {"panoptic_seg": (torch.as_tensor(read_segment_ids(annotation["file_name"]).astype(np.int32)), segments)}

    def _describe(self, totals: PQStat, objects: Sequence[ObjectRow]) -> dict[str, Any]:
        """See ``ImageEvaluator.details``."""
        names = {category["id"]: str(category.get("name", category["id"])) for category in self._content["categories"]}
        ids = sorted(names, key=lambda id_: self._class_of_id.get(id_, len(names)))  # those of no class come last
        place = {id_: index for index, id_ in enumerate(ids)}
        return {
            "per_class": {"panoptic_seg": [{"class": names[id_], **_tabulate(totals, id_)} for id_ in ids]},
            "confusion": confuse_objects(objects, place, [names[id_] for id_ in ids]),
            "by_size": score_objects_by_size(objects),
        }

    @property
    def _json_file(self) -> str | None:
        return self.metadata.get("panoptic_json")

    @property
    def _source(self) -> str:
        return self._json_file or f"dataset {self.name}"

    @cached_property
    def _content(self) -> dict[str, Any]:
        """What the dataset's JSON holds, or would hold; file names are whole paths."""
        if self._json_file is None:
            return panoptic_of_records(DatasetCatalog.get(self.name), self.metadata, self._source)
        content = read_panoptic_json(self._json_file, with_images=False)
        if "categories" not in content:
            raise InputError(f"{self._json_file} has no categories; expected COCO's format.")
        folder = str(require(self.metadata, "panoptic_root"))
        for annotation in content["annotations"]:
            annotation["file_name"] = join_inside(folder, annotation["file_name"], self._json_file)
        return content

    @cached_property
    def _annotations(self) -> dict[Any, dict[str, Any]]:
        return {annotation["image_id"]: annotation for annotation in self._content["annotations"]}

    @cached_property
    def _things_and_stuff(self) -> dict[int, bool]:
        """Whether each category is one of things."""
        return {category["id"]: category["isthing"] == 1 for category in self._content["categories"]}

    @cached_property
    def _dataset_ids(self) -> tuple[dict[int, int], dict[int, int]]:
        """The category id of each class, of stuff and of things; where one table lacks a class, the other may have it.

        They are two for datasets that number things and stuff apart. Where neither has a class, names decide.
        """
        if self._json_file is None:
            identity = {index: index for index in self._things_and_stuff}
            return identity, identity
        tables = [self.metadata.get(f"{kind}_dataset_id_to_contiguous_id") for kind in ("stuff", "thing")]
        stuff, things = ({index: id_ for id_, index in (table or {}).items()} for table in tables)
        numbered, names = stuff.keys() | things.keys(), self.metadata.get("stuff_classes")
        lacking = [index for index in range(len(names or ())) if index not in numbered]
        if lacking or not numbered:
            by_name = self._ids_by_name(names, self._content["categories"], self._json_file)
            stuff.update({index: by_name[index] for index in lacking})
        return {**things, **stuff}, {**stuff, **things}

    @cached_property
    def _class_of_id(self) -> dict[int, int]:
        """The class of each category that the dataset has."""
        return {id_: index for table in self._dataset_ids for index, id_ in table.items()}

    def _with_dataset_id(self, segment: dict[str, Any], file_name: str) -> dict[str, Any]:
        is_thing = segment.pop("isthing", None)
        if is_thing is None:  # the model gives ids of the dataset
            return segment
        table = self._dataset_ids[bool(is_thing)]
        if segment["category_id"] not in table:
            self._refuse_category(file_name, segment["category_id"])
        return {**segment, "category_id": table[segment["category_id"]]}

    def _refuse_category(self, file_name: str, category: int) -> NoReturn:
        raise InputError(
            f"The prediction for {file_name} has a segment of category {category}, which is none of the "
            f"{len(self._things_and_stuff)} of {self._source}: check MODEL.SEM_SEG_HEAD.NUM_CLASSES and DATASETS.TEST."
        )

    def _decode_segments(self, id_map: np.ndarray) -> list[dict[str, Any]]:
        """``segments_info`` of a map of category id x ``label_divisor`` + number, for ids that are one higher."""
        is_thing = {index: self._things_and_stuff.get(id_, False) for index, id_ in self._dataset_ids[1].items()}
        classes = {value: value // self.metadata.label_divisor for value in np.unique(id_map).tolist() if value != -1}
        return [
            {"id": value + 1, "category_id": index, "isthing": is_thing.get(index, False)}
            for value, index in classes.items()
        ]

    def _check_prediction(self, file_name: str, pairs: Pairs, predicted: dict[int, int]) -> None:
        occurring = {predicted_id for _, predicted_id in pairs if predicted_id != VOID or VOID in predicted}
        different = occurring ^ predicted.keys()
        if different:
            raise InputError(
                f"The prediction for {file_name} has the segment {min(different)} in only one of its map of ids and "
                "its list of segments; expected each in both."
            )
        unknown = sorted(set(predicted.values()) - self._things_and_stuff.keys())
        if unknown:
            self._refuse_category(file_name, unknown[0])

    def _check_all(self, image_ids: Collection[Any], what: str) -> None:
        missing = [image_id for image_id in self._annotations if image_id not in image_ids]
        if missing:
            raise InputError(
                f"{len(missing)} images of {self._source} have no {what}, first {missing[0]!r}; "
                "expected one for each: DATASETS.TEST and the JSON must list the same images."
            )


def _report(totals: PQStat, is_thing: dict[int, bool]) -> dict[str, float]:
    """The scores by name, which are also logged as a table."""
    groups = {
        "All": average_quality(totals, is_thing),
        "Things": average_quality(totals, [category for category, thing in is_thing.items() if thing]),
        "Stuff": average_quality(totals, [category for category, thing in is_thing.items() if not thing]),
    }
    undefined = [name for name, (_, count) in groups.items() if not count]
    if undefined:
        logger.warning("Undefined (nan), for no image has any, labelled or predicted: %s.", ", ".join(undefined))
    rows = [(name, *quality.values(), count) for name, (quality, count) in groups.items()]
    table = tabulate(rows, headers=("", *METRICS, "#categories"), tablefmt="pipe", floatfmt=".3f")
    logger.info("Panoptic Evaluation Results:\n%s", table)
    suffixes = {"All": "", "Things": "_th", "Stuff": "_st"}
    return {f"{metric}{suffixes[name]}": groups[name][0][metric] for name in groups for metric in METRICS}


def count_pairs(label: np.ndarray, predicted: np.ndarray) -> Pairs:
    """Count the pixels of each pair of segments, run by run: neighbours mostly belong to the same two.

    Args:
        label: (height,width) ids from 0 to 2^31 - 1.
        predicted: likewise.

    Returns:
        (label's id, prediction's id) -> pixels, in rising order.
    """
    label, predicted = label.ravel(), predicted.ravel()
    changes = (label[1:] != label[:-1]) | (predicted[1:] != predicted[:-1])
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(starts, append=label.size)
    codes = label[starts].astype(np.int64) << _ID_BITS | predicted[starts].astype(np.int64)
    pairs, index = np.unique(codes, return_inverse=True)
    pixels = np.bincount(index, weights=lengths).astype(np.int64)
    return {
        (pair >> _ID_BITS, pair & (1 << _ID_BITS) - 1): count for pair, count in zip(pairs.tolist(), pixels.tolist())
    }


def match_segments(
    pairs: Pairs, annotated: Sequence[Mapping[str, Any]], predicted: Mapping[int, int]
) -> list[ObjectRow]:
    """Find the prediction of each segment of one image, whatever its category: that with an IoU above 1/2.

    Args:
        pairs: see ``count_pairs``.
        annotated: ``segments_info`` of the label; ``id``, ``category_id`` and ``iscrowd`` are read. Areas are counted,
            and a segment without a pixel is none.
        predicted: category of each predicted id; each occurs in ``pairs``.

    Returns:
        A row of each segment that counts, in the label or in the prediction alone.

    Source: Panoptic Segmentation (arXiv 1801.00868), section 4; panopticapi where the paper is silent: crowds.
    """
    true_areas: Counter[int] = Counter()
    areas: Counter[int] = Counter()
    for (true_id, predicted_id), pixels in pairs.items():
        true_areas[true_id] += pixels
        areas[predicted_id] += pixels
    present = [segment for segment in annotated if true_areas[segment["id"]]]
    crowds = {segment["category_id"]: segment["id"] for segment in present if segment["iscrowd"] == 1}
    truth = {segment["id"]: int(segment["category_id"]) for segment in present if segment["iscrowd"] != 1}
    counted: dict[int, int] = {}  # predictions, less those that are mostly void or a crowd of their category
    for predicted_id, category in predicted.items():
        excused = pairs.get((VOID, predicted_id), 0) + pairs.get((crowds.get(category, -1), predicted_id), 0)
        if 2 * excused <= areas[predicted_id]:
            counted[predicted_id] = int(category)
    rows: list[ObjectRow] = []
    missed, matched = dict(truth), set()
    for (true_id, predicted_id), intersection in pairs.items():
        if true_id in truth and predicted_id in predicted:
            void = pairs.get((VOID, predicted_id), 0)
            iou = intersection / (areas[predicted_id] + true_areas[true_id] - intersection - void)
            category = int(predicted[predicted_id])
            if iou > 0.5 and (predicted_id in counted or category == truth[true_id]):
                rows.append((missed.pop(true_id), category, true_areas[true_id], iou))
                matched.add(predicted_id)
    rows += [(category, None, true_areas[id_], None) for id_, category in missed.items()]
    return rows + [(None, category, None, None) for id_, category in counted.items() if id_ not in matched]


def count_matches(objects: Iterable[ObjectRow]) -> PQStat:
    """True positives by category, with the sum of their IoU, false positives and false negatives, of one image."""
    counts = PQStat()
    for true, predicted, _, iou in objects:
        if true is not None and true == predicted:
            counts[true].iou += iou
            counts[true].tp += 1
            continue
        if true is not None:
            counts[true].fn += 1
        if predicted is not None:
            counts[predicted].fp += 1
    return counts


def _sum_counts(images: Iterable[Sequence[Sequence[Any]]]) -> PQStat:
    """The counts of some images, each as ``measure`` gives them."""
    totals = PQStat()
    for image in images:
        for category, iou, true_positives, false_positives, false_negatives in image:
            totals[category].iou += iou
            totals[category].tp += true_positives
            totals[category].fp += false_positives
            totals[category].fn += false_negatives
    return totals


def _tabulate(totals: PQStat, category: int) -> dict[str, Any]:
    """The scores and counts of one category."""
    count = totals[category]
    return {**average_quality(totals, [category])[0], "TP": count.tp, "FP": count.fp, "FN": count.fn}


def average_quality(counts: PQStat, categories: Collection[int]) -> tuple[dict[str, float], int]:
    """The means over those categories that label or prediction have.

    Args:
        counts: of all images.
        categories: to average over.

    Returns:
        ``METRICS`` in percent, nan where there is no category; and how many categories there are.
    """
    seen = dict.fromkeys(id_ for id_ in categories if counts[id_].tp + counts[id_].fp + counts[id_].fn)
    if not seen:
        return dict.fromkeys(METRICS, float("nan")), 0
    means, _ = counts.pq_average(seen, isthing=None)
    return {metric: 100 * means[metric.lower()] for metric in METRICS}, len(seen)
