"""Panoptic quality."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections import OrderedDict
from dataclasses import astuple
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from maskformer.data.json_files import join_inside, read_panoptic_json
from maskformer.data.reading import read_segment_ids
from maskformer.evaluation.panoptic_quality import (
    VOID,
    CategoryCounts,
    Pairs,
    Quality,
    average_quality,
    count_pairs,
    match_segments,
)
from maskformer.structures import BadImageError, InputError

logger = logging.getLogger(__name__)

_METRICS = ("PQ", "SQ", "RQ")


class PanopticEvaluator(COCOPanopticEvaluator):
    """Detectron2's evaluator, which compares each image when it is predicted, instead of all at the end from files.

    It has the scores and writes the files of Detectron2's, and also survives a dataset where no thing, or no stuff, is
    annotated or predicted.

    Args:
        dataset_name: registered, with ``panoptic_json`` and ``panoptic_root`` and the id tables in its metadata.
        output_dir: where predictions are written; None: nowhere.
    """

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compare some images with their labels.

        Args:
            inputs: entries of the dataset; ``file_name`` and ``image_id`` are read.
            outputs: ``panoptic_seg`` of each: ids (height,width), 0 for void, and ``segments_info``; or category id x
                ``label_divisor`` + number, -1 for void, and None.

        Raises:
            InputError: there is no label, or ids, categories or sizes do not fit.
        """
        for example, output in zip(inputs, outputs, strict=True):
            self.add(self.measure(example, output))

    def measure(self, example: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Compare one image with its label; see ``ImageEvaluator``."""
        id_map, segments = output["panoptic_seg"]
        id_map = id_map.cpu().numpy()
        if segments is None:
            segments = self._decode_segments(id_map)
            id_map = id_map + 1
        segments = [self._convert_category_id(dict(segment)) for segment in segments]
        counts = self._compare(example, id_map, segments)
        return {
            "image_id": example["image_id"],
            "file_name": os.path.splitext(os.path.basename(example["file_name"]))[0] + ".png",
            "segments_info": segments,
            "counts": [[category, *astuple(count)] for category, count in counts.items()],
        }

    def add(self, measured: dict[str, Any]) -> None:
        """Count an image; see ``ImageEvaluator``."""
        counts = {category: CategoryCounts(*count) for category, *count in measured["counts"]}
        self._predictions.append({**measured, "counts": counts})

    def evaluate(self) -> dict[str, dict[str, Any]] | None:
        """Panoptic quality of all things, of all stuff, and of both, in percent; on the main process only."""
        parts = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        predictions = list(itertools.chain(*parts))
        if self._output_dir is not None:
            self._write(predictions)
        totals = self._sum({prediction["image_id"]: prediction["counts"] for prediction in predictions})
        things = {category["id"] for category in self._truth["categories"] if category["isthing"] == 1}
        groups = {
            "All": average_quality(totals.values()),
            "Things": average_quality(count for category, count in totals.items() if category in things),
            "Stuff": average_quality(count for category, count in totals.items() if category not in things),
        }
        return OrderedDict(panoptic_seg=_report(groups))

    @cached_property
    def _truth(self) -> dict[str, Any]:
        """What the dataset's JSON holds."""
        content = read_panoptic_json(PathManager.get_local_path(self._metadata.panoptic_json), image_fields=())
        if "categories" not in content:
            raise InputError(f"{self._metadata.panoptic_json} has no categories; expected COCO's format.")
        return content

    @cached_property
    def _annotations(self) -> dict[Any, dict[str, Any]]:
        return {annotation["image_id"]: annotation for annotation in self._truth["annotations"]}

    @cached_property
    def _folder(self) -> str:
        return str(PathManager.get_local_path(self._metadata.panoptic_root))

    def _decode_segments(self, id_map: np.ndarray) -> list[dict[str, Any]]:
        """``segments_info`` of a map of category id x ``label_divisor`` + number, for ids that are one higher."""
        things = self._metadata.thing_dataset_id_to_contiguous_id.values()
        classes = {value: value // self._metadata.label_divisor for value in np.unique(id_map).tolist() if value != -1}
        return [{"id": value + 1, "category_id": index, "isthing": index in things} for value, index in classes.items()]

    def _compare(
        self, example: dict[str, Any], id_map: np.ndarray, segments: list[dict[str, Any]]
    ) -> dict[int, CategoryCounts]:
        annotation = self._annotations.get(example["image_id"])
        if annotation is None:
            raise InputError(
                f"{self._metadata.panoptic_json} has no annotation of image {example['image_id']!r} "
                f"({example['file_name']}); expected one for each image of DATASETS.TEST."
            )
        label_file = join_inside(self._folder, annotation["file_name"], self._metadata.panoptic_json)
        label = read_segment_ids(label_file)
        if label.shape != id_map.shape:
            raise BadImageError(
                f"The prediction for {example['file_name']} is {id_map.shape[1]} x {id_map.shape[0]} pixels (width x "
                f"height) but its label {label_file} is {label.shape[1]} x {label.shape[0]}; expected equal sizes."
            )
        pairs = count_pairs(label, id_map)
        predicted = {segment["id"]: segment["category_id"] for segment in segments}
        self._check(example["file_name"], pairs, predicted)
        return match_segments(pairs, annotation["segments_info"], predicted)

    def _check(self, file_name: str, pairs: Pairs, predicted: dict[int, int]) -> None:
        occurring = {predicted_id for _, predicted_id in pairs if predicted_id != VOID or VOID in predicted}
        different = occurring ^ predicted.keys()
        if different:
            raise InputError(
                f"The prediction for {file_name} has the segment {min(different)} in only one of its map of ids and "
                "its list of segments; expected each in both."
            )
        unknown = sorted(set(predicted.values()) - {category["id"] for category in self._truth["categories"]})
        if unknown:
            raise InputError(
                f"The prediction for {file_name} has a segment of category {unknown[0]}, which is none of the "
                f"{len(self._truth['categories'])} of {self._metadata.panoptic_json}: check "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES and DATASETS.TEST."
            )

    def _sum(self, counts: dict[Any, dict[int, CategoryCounts]]) -> dict[int, CategoryCounts]:
        """Those of all images, by the categories of the dataset's JSON."""
        missing = [image_id for image_id in self._annotations if image_id not in counts]
        if missing:
            raise InputError(
                f"{len(missing)} images of {self._metadata.panoptic_json} have no prediction, first {missing[0]!r}; "
                "expected one for each: DATASETS.TEST and the JSON must list the same images."
            )
        totals = {category["id"]: CategoryCounts() for category in self._truth["categories"]}
        for image_id in self._annotations:
            for category, count in counts[image_id].items():
                if category in totals:  # panopticapi too passes over labels of a category that is not listed
                    totals[category].add(count)
        return totals

    def _write(self, predictions: list[dict[str, Any]]) -> None:
        keys = ("image_id", "file_name", "segments_info")
        annotations = [{key: prediction[key] for key in keys} for prediction in predictions]
        with PathManager.open(os.path.join(self._output_dir, "predictions.json"), "w") as file:
            file.write(json.dumps({**self._truth, "annotations": annotations}))


def _report(groups: dict[str, Quality]) -> dict[str, float]:
    """The scores by name, which are also logged as a table."""
    if not all(quality.categories for quality in groups.values()):
        logger.warning("Panoptic quality is undefined: no image has a thing, or none has stuff.")
        names = [f"{metric}{suffix}" for suffix in ("", "_th", "_st") for metric in _METRICS]
        return dict.fromkeys(names, float("nan"))
    rows = [
        (name, *(getattr(quality, metric) for metric in _METRICS), quality.categories)
        for name, quality in groups.items()
    ]
    table = tabulate(rows, headers=("", *_METRICS, "#categories"), tablefmt="pipe", floatfmt=".3f")
    logger.info("Panoptic Evaluation Results:\n%s", table)
    suffixes = {"All": "", "Things": "_th", "Stuff": "_st"}
    return {f"{metric}{suffixes[name]}": getattr(groups[name], metric) for name in groups for metric in _METRICS}
