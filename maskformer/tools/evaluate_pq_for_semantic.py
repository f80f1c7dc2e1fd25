"""Panoptic quality of semantic predictions: the region of each class in an image is one segment.

    python -m maskformer.tools.evaluate_pq_for_semantic --json-file PREDICTIONS --dataset-name ade20k_sem_seg_val

PREDICTIONS is the ``inference/DATASET/sem_seg_predictions.json`` that an evaluation writes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog

from maskformer.config import load_config
from maskformer.data.datasets import register_missing
from maskformer.data.datasets.classes import dataset_ids, ignore_label_of, require
from maskformer.data.files.masks import find_rle_fault
from maskformer.data.files.reading import read_label_map
from maskformer.evaluation.class_regions import NO_CLASS, RegionCounts, count_regions
from maskformer.runs.failures import EXIT_INPUT_ERROR
from maskformer.structures import InputError

Regions = dict[str, list[dict[str, Any]]]  # image file -> its entries of the JSON


def read_predictions(path: str) -> Regions:
    """Read what Detectron2's ``SemSegEvaluator`` wrote, by image file.

    Args:
        path: a list of ``file_name``, ``category_id`` and ``segmentation`` (RLE).

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    expected = "expected the sem_seg_predictions.json of an evaluation; change --json-file."
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"Predictions {path} cannot be read ({error}); {expected}") from error
    fields = {"file_name", "category_id", "segmentation"}
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and fields <= entry.keys() and _has_usual_types(entry) for entry in entries
    ):
        raise InputError(f"Predictions {path} hold no list of {', '.join(sorted(fields))}; {expected}")
    regions: Regions = defaultdict(list)
    for entry in entries:
        regions[entry["file_name"]].append(entry)
    return regions


def _has_usual_types(entry: dict[str, Any]) -> bool:
    segmentation = entry["segmentation"]
    is_mask = isinstance(segmentation, dict) and isinstance(segmentation.get("size"), list)
    return is_mask and isinstance(entry["file_name"], str) and isinstance(entry["category_id"], int)


def evaluate(regions: Regions, dataset_name: str) -> RegionCounts:
    """Compare predictions with the semantic labels of a dataset.

    Args:
        regions: see ``read_predictions``.
        dataset_name: registered, with ``sem_seg_file_name`` in its entries.

    Raises:
        InputError: the dataset has no such labels, or images, sizes or classes differ from the predictions'.
    """
    records = _read_records(dataset_name)
    _check_images(regions, records, dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    num_classes, ignore_label = len(require(metadata, "stuff_classes")), ignore_label_of(metadata)
    contiguous_ids = {number: index for index, number in dataset_ids(dataset_name, num_classes).items()}
    counts = RegionCounts.none(num_classes)
    for file_name, label_file in records.items():
        label = read_label_map(label_file, num_classes, ignore_label, metadata.get("label_values")).astype(np.int64)
        label[label == ignore_label] = NO_CLASS
        predicted = draw_regions(regions[file_name], (label.shape[0], label.shape[1]), contiguous_ids)
        counts += count_regions(predicted, label, num_classes)
    return counts


def draw_regions(regions: list[dict[str, Any]], size: tuple[int, int], contiguous_ids: dict[int, int]) -> np.ndarray:
    """One image's class map from its entries.

    Args:
        regions: at least one, of disjoint pixels.
        size: (height, width) of the label.
        contiguous_ids: ``category_id`` -> class 0..K-1.

    Returns:
        (height,width) int64, ``NO_CLASS`` where no entry is.

    Raises:
        InputError: the size or a class differs.
    """
    class_map = np.full(size, NO_CLASS, dtype=np.int64)
    for region in regions:
        file_name, category, mask_size = region["file_name"], region["category_id"], region["segmentation"]["size"]
        fault = find_rle_fault(region["segmentation"])
        if fault:
            raise InputError(f"The prediction of {file_name} {fault}: change --json-file.")
        if tuple(mask_size) != size:
            raise InputError(
                f"The prediction of {file_name} is {mask_size[1]} x {mask_size[0]} pixels (width x height) but its "
                f"label is {size[1]} x {size[0]}: change --dataset-name, or evaluate again."
            )
        if category not in contiguous_ids:
            raise InputError(
                f"The prediction of {file_name} has category_id {category}, which is none of the dataset's "
                f"{len(contiguous_ids)} classes: change --dataset-name or --json-file."
            )
        class_map[mask_util.decode(region["segmentation"]).astype(bool)] = contiguous_ids[category]
    return class_map


def _read_records(dataset_name: str) -> dict[str, str]:
    """Image file -> label file."""
    if dataset_name not in DatasetCatalog:
        raise InputError(f"--dataset-name is {dataset_name!r}, which is not registered; expected a dataset's name.")
    try:
        records = DatasetCatalog.get(dataset_name)
    except (OSError, AssertionError) as error:
        raise InputError(
            f"Dataset {dataset_name} cannot be read ({error}): set DETECTRON2_DATASETS, see datasets/README.md."
        ) from error
    if not records or "sem_seg_file_name" not in records[0]:
        raise InputError(f"Dataset {dataset_name} holds no semantic labels; change --dataset-name.")
    return {record["file_name"]: record["sem_seg_file_name"] for record in records}


def _check_images(regions: Regions, records: dict[str, str], dataset_name: str) -> None:
    missing, foreign = sorted(records.keys() - regions.keys()), sorted(regions.keys() - records.keys())
    if missing or foreign:
        which = f"no prediction for {missing[0]}" if missing else f"one for {foreign[0]}, which is not in it"
        raise InputError(
            f"{dataset_name} has {len(records)} images, the predictions are of {len(regions)}, with {which}: change "
            "--dataset-name or --json-file, or set DETECTRON2_DATASETS to the folder of the evaluation."
        )


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m maskformer.tools.evaluate_pq_for_semantic", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json-file", required=True, metavar="FILE", help="sem_seg_predictions.json")
    parser.add_argument("--dataset-name", default="ade20k_sem_seg_val", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--config-file", default="", metavar="FILE", help="whose DATASETS.OWN describes the dataset")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints the scores; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        register_missing(load_config(args.config_file).DATASETS.OWN)
        counts = evaluate(read_predictions(args.json_file), args.dataset_name)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    print(f"{args.dataset_name}, each class of an image as one segment, in percent")
    print("  ".join(f"{name} {score:.3f}" for name, score in counts.scores().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
