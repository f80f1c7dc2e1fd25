"""Panoptic quality."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from maskformer.data.datasets.classes import require
from maskformer.data.files.json_files import join_inside, panoptic_of_records, read_panoptic_json
from maskformer.data.files.reading import read_segment_ids
from maskformer.structures import BadImageError, InputError

from .panoptic_quality import (
    VOID,
    CategoryCounts,
    Pairs,
    Quality,
    average_quality,
    count_pairs,
    match_segments,
)
from .truth import check_image_ids, image_id_of, match_ids

logger = logging.getLogger(__name__)

_METRICS = ("PQ", "SQ", "RQ")


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic quality as panopticapi defines it, of each image when it is predicted, instead of all at the end.

    It has the scores of Detectron2's evaluator and writes its file. Areas are counted, whatever the JSON says of them;
    and where no thing, or no stuff, is annotated or predicted, that part alone is undefined.

    Args:
        dataset_name: registered. The truth is ``panoptic_json`` with ``panoptic_root`` or, without them,
            ``pan_seg_file_name`` and ``segments_info`` of its entries.
        output_dir: where predictions are written; None: nowhere.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        self._name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._output_dir = output_dir
        self._predictions: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget all images."""
        self._predictions = []

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Read the truth, and raise an ``InputError`` where it does not fit the images and classes of the dataset."""
        table = self._dataset_ids
        unknown = sorted({*table[0].values(), *table[1].values()} - self._things_and_stuff.keys())
        if unknown:
            raise InputError(
                f"Dataset {self._name} has a class of the category {unknown[0]} in its metadata, which is none of the "
                f"{len(self._things_and_stuff)} of {self._source}; expected those of the JSON."
            )
        if self._json_file is not None:
            check_image_ids(records, self._annotations, self._json_file)
            self._check_all({record["image_id"] for record in records}, "entry in the dataset")

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
        segments = [self._with_dataset_id(dict(segment), example["file_name"]) for segment in segments]
        counts = self._compare(example, id_map, segments)
        return {
            "image_id": image_id_of(example, self._truth),
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
            self._write(predictions, self._output_dir)
        totals = self._sum({prediction["image_id"]: prediction["counts"] for prediction in predictions})
        things = {category for category, is_thing in self._things_and_stuff.items() if is_thing}
        groups = {
            "All": average_quality(totals.values()),
            "Things": average_quality(count for category, count in totals.items() if category in things),
            "Stuff": average_quality(count for category, count in totals.items() if category not in things),
        }
        return {"panoptic_seg": _report(groups)}

    @property
    def _json_file(self) -> str | None:
        return self._metadata.get("panoptic_json")

    @property
    def _source(self) -> str:
        return self._json_file or f"dataset {self._name}"

    @cached_property
    def _truth(self) -> dict[str, Any]:
        """What the dataset's JSON holds, or would hold; file names are whole paths."""
        if self._json_file is None:
            return panoptic_of_records(DatasetCatalog.get(self._name), self._metadata, self._source)
        content = read_panoptic_json(PathManager.get_local_path(self._json_file), with_images=False)
        if "categories" not in content:
            raise InputError(f"{self._json_file} has no categories; expected COCO's format.")
        folder = str(PathManager.get_local_path(require(self._metadata, "panoptic_root")))
        for annotation in content["annotations"]:
            annotation["file_name"] = join_inside(folder, annotation["file_name"], self._json_file)
        return content

    @cached_property
    def _annotations(self) -> dict[Any, dict[str, Any]]:
        return {annotation["image_id"]: annotation for annotation in self._truth["annotations"]}

    @cached_property
    def _things_and_stuff(self) -> dict[int, bool]:
        """Whether each category is one of things."""
        return {category["id"]: category["isthing"] == 1 for category in self._truth["categories"]}

    @cached_property
    def _dataset_ids(self) -> tuple[dict[int, int], dict[int, int]]:
        """The category id of each class, of stuff and of things; where one table lacks a class, the other may have it.

        They are two for datasets that number things and stuff apart. Where neither has a class, names decide.
        """
        if self._json_file is None:
            identity = {index: index for index in self._things_and_stuff}
            return identity, identity
        tables = [self._metadata.get(f"{kind}_dataset_id_to_contiguous_id") for kind in ("stuff", "thing")]
        stuff, things = ({index: id_ for id_, index in (table or {}).items()} for table in tables)
        numbered, names = stuff.keys() | things.keys(), self._metadata.get("stuff_classes")
        lacking = [index for index in range(len(names or ())) if index not in numbered]
        if lacking or not numbered:
            by_name = match_ids(None, names, self._truth["categories"], self._json_file)
            stuff.update({index: by_name[index] for index in lacking})
        return {**things, **stuff}, {**stuff, **things}

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
        classes = {value: value // self._metadata.label_divisor for value in np.unique(id_map).tolist() if value != -1}
        return [
            {"id": value + 1, "category_id": index, "isthing": is_thing.get(index, False)}
            for value, index in classes.items()
        ]

    def _compare(
        self, example: dict[str, Any], id_map: np.ndarray, segments: list[dict[str, Any]]
    ) -> dict[int, CategoryCounts]:
        if self._json_file is not None:
            check_image_ids([example], self._annotations, self._json_file)
        annotation = self._annotations[image_id_of(example, self._truth)]
        label_file = annotation["file_name"]
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
        unknown = sorted(set(predicted.values()) - self._things_and_stuff.keys())
        if unknown:
            self._refuse_category(file_name, unknown[0])

    def _sum(self, counts: dict[Any, dict[int, CategoryCounts]]) -> dict[int, CategoryCounts]:
        """Those of all images, by the categories of the dataset's JSON."""
        self._check_all(counts.keys(), "prediction")
        totals = {category: CategoryCounts() for category in self._things_and_stuff}
        for image_id in self._annotations:
            for category, count in counts[image_id].items():
                totals[category].add(count)
        return totals

    def _check_all(self, image_ids: Collection[Any], what: str) -> None:
        missing = [image_id for image_id in self._annotations if image_id not in image_ids]
        if missing:
            raise InputError(
                f"{len(missing)} images of {self._source} have no {what}, first {missing[0]!r}; "
                "expected one for each: DATASETS.TEST and the JSON must list the same images."
            )

    def _write(self, predictions: list[dict[str, Any]], folder: str) -> None:
        keys = ("image_id", "file_name", "segments_info")
        annotations = [{key: prediction[key] for key in keys} for prediction in predictions]
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "predictions.json"), "w", encoding="utf-8") as file:
            file.write(json.dumps({**self._truth, "annotations": annotations}))


def _report(groups: dict[str, Quality]) -> dict[str, float]:
    """The scores by name, which are also logged as a table."""
    undefined = [name for name, quality in groups.items() if not quality.categories]
    if undefined:
        logger.warning("Undefined (nan), for no image has any, labelled or predicted: %s.", ", ".join(undefined))
    rows = [
        (name, *(getattr(quality, metric) for metric in _METRICS), quality.categories)
        for name, quality in groups.items()
    ]
    table = tabulate(rows, headers=("", *_METRICS, "#categories"), tablefmt="pipe", floatfmt=".3f")
    logger.info("Panoptic Evaluation Results:\n%s", table)
    suffixes = {"All": "", "Things": "_th", "Stuff": "_st"}
    return {f"{metric}{suffixes[name]}": getattr(groups[name], metric) for name in groups for metric in _METRICS}
