"""Panoptic quality of semantic predictions: the region of each class in an image is one segment.

    python -m maskformer.tools.evaluate_pq_for_semantic --json-file PREDICTIONS --dataset-name ade20k_sem_seg_val

PREDICTIONS is the ``inference/DATASET/sem_seg_predictions.json`` that an evaluation writes.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from panopticapi.evaluation import PQStat

from maskformer.config import load_config
from maskformer.data.checks.verification import load_dataset
from maskformer.data.datasets import register_missing
from maskformer.data.datasets.classes import dataset_ids, ignore_label_of, require
from maskformer.data.files.json_files import read_json
from maskformer.data.files.masks import find_rle_fault
from maskformer.data.files.reading import read_label_map
from maskformer.evaluation.panoptic import VOID, average_quality, count_matches, count_pairs, match_segments
from maskformer.runs.failures import EXIT_INPUT_ERROR
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError

Regions = dict[str, list[dict[str, Any]]]  # image file -> its entries of the JSON


def _read_predictions(path: str) -> Regions:
    """What Detectron2's ``SemSegEvaluator`` wrote, by image file."""
    entries = read_json(path, "--json-file")
    if not isinstance(entries, list) or not all(map(_is_region, entries)):
        raise InputError(
            f"--json-file {path} holds no list of category_id, file_name and segmentation; expected the "
            "sem_seg_predictions.json of an evaluation."
        )
    regions: Regions = defaultdict(list)
    for entry in entries:
        regions[entry["file_name"]].append(entry)
    return regions


def _is_region(entry: Any) -> bool:
    match entry:
        case {"file_name": str(), "category_id": int(), "segmentation": {"size": list()}}:
            return True
    return False


def evaluate(regions: Regions, dataset_name: str) -> dict[str, float]:
    """Compare predictions with the semantic labels of a dataset.

    Args:
        regions: entries of the JSON, by image file.
        dataset_name: registered, with ``sem_seg_file_name`` in its entries.

    Returns:
        PQ, SQ and RQ in percent.

    Raises:
        InputError: the dataset has no such labels, or images, sizes or classes differ from the predictions'.
    """
    entries = load_dataset(dataset_name, "--dataset-name")
    if "sem_seg_file_name" not in entries[0]:
        raise InputError(f"Dataset {dataset_name} holds no semantic labels; change --dataset-name.")
    records = {record["file_name"]: record["sem_seg_file_name"] for record in entries}
    missing, foreign = sorted(records.keys() - regions.keys()), sorted(regions.keys() - records.keys())
    if missing or foreign:
        which = f"no prediction for {missing[0]}" if missing else f"one for {foreign[0]}, which is not in it"
        raise InputError(
            f"{dataset_name} has {len(records)} images, the predictions are of {len(regions)}, with {which}: change "
            "--dataset-name or --json-file, or set DETECTRON2_DATASETS to the folder of the evaluation."
        )
    metadata = MetadataCatalog.get(dataset_name)
    num_classes, ignore_label = len(require(metadata, "stuff_classes")), ignore_label_of(metadata)
    contiguous_ids = {number: index for index, number in dataset_ids(dataset_name, num_classes).items()}
    annotated = [{"id": index + 1, "category_id": index, "iscrowd": 0} for index in range(num_classes)]
    counts = PQStat()
    for file_name, label_file in records.items():
        label = read_label_map(label_file, num_classes, ignore_label, metadata.get("label_values")).astype(np.int64)
        predicted = _draw_regions(regions[file_name], (label.shape[0], label.shape[1]), contiguous_ids)
        pairs = count_pairs(np.where(label == ignore_label, VOID, label + 1), predicted)
        of_segments = {id_: id_ - 1 for _, id_ in pairs if id_ != VOID}
        counts += count_matches(match_segments(pairs, annotated, of_segments))
    return average_quality(counts, range(num_classes))[0]


def _draw_regions(regions: list[dict[str, Any]], size: tuple[int, int], contiguous_ids: dict[int, int]) -> np.ndarray:
    """One image's (height,width) int64 map of class + 1 from its entries, ``VOID`` where there is none."""
    segment_map = np.full(size, VOID, dtype=np.int64)
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
        segment_map[mask_util.decode(region["segmentation"]).astype(bool)] = contiguous_ids[category] + 1
    return segment_map


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
        scores = evaluate(_read_predictions(args.json_file), args.dataset_name)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    print(f"{args.dataset_name}, each class of an image as one segment, in percent")
    print("  ".join(f"{name} {score:.3f}" for name, score in scores.items()))
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
