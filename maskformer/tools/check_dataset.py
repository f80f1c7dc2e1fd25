"""Checks a registered dataset on the CPU before a training: ``python -m maskformer.tools.check_dataset NAME [--all]``.

Exit codes: 0 all is well, 1 something was found, 2 the dataset is not there or the command is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from maskformer.config import load_config
from maskformer.config.own_datasets import read_own_datasets
from maskformer.data.checks.inspection import Inspection, explain_foreign, find_unpaired
from maskformer.data.checks.verification import check_num_classes, class_names, load_dataset
from maskformer.data.datasets import register_all
from maskformer.data.datasets.classes import ignore_label_of
from maskformer.data.datasets.own import register_own
from maskformer.reports.console import ProgressLine
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError, printable

_ROOT = "folder of all datasets (default: %(default)s); names that Detectron2 registers follow $DETECTRON2_DATASETS"
_CONFIG = "the dataset is checked for its model; its DATASETS.OWN may describe the dataset"
EXAMPLES = 5  # how many of many equal findings are printed


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m maskformer.tools.check_dataset", description=__doc__.split(":")[0])
    parser.add_argument("name", metavar="NAME", help="as in DATASETS.TRAIN")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--all", action="store_true", help="look at every image")
    amount.add_argument("--images", type=int, default=200, help="how many to look at, evenly spread (%(default)s)")
    parser.add_argument("--config-file", default="", metavar="FILE", help=_CONFIG)
    default_root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default_root, help=_ROOT)
    parser.add_argument("--queries", type=int, help="MODEL.MASK_FORMER.NUM_OBJECT_QUERIES (the configuration's)")
    return parser


def choose(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """So many entries, evenly spread from the first to the last."""
    if count >= len(records):
        return records
    return [records[index] for index in np.linspace(0, len(records) - 1, count).round().astype(int)]


def find_problems(seen: Inspection, unpaired: list[str], queries: int) -> list[str]:
    """Say what is wrong, one sentence each."""
    problems = [*unpaired, *shorten(seen.problems)]
    if seen.foreign:
        shown = ", ".join(f"{value} (in {count} images)" for value, count in [*seen.foreign.items()][:EXAMPLES])
        cause = explain_foreign(seen.foreign, seen.values, seen.num_classes, seen.ignore_label)
        problems.append(f"Labels hold {shown}; expected 0..{seen.num_classes - 1} or {seen.ignore_label}: {cause}.")
    count, file = seen.most_segments
    if count > queries:
        problems.append(
            f"{file} has {count} segments but there are {queries} queries, so {count - queries} cannot be learned: "
            f"raise MODEL.MASK_FORMER.NUM_OBJECT_QUERIES to {count} or more."
        )
    return problems


def find_misfits(cfg: CfgNode, name: str, record: dict[str, Any]) -> list[str]:
    """Compare a dataset, by an entry, with the model of a configuration, where that has one: 0 or 1 sentence."""
    if cfg.MODEL == load_config("").MODEL:
        return []
    only_tested = name in cfg.DATASETS.TEST and name not in cfg.DATASETS.TRAIN
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    try:
        check_num_classes(name, MetadataCatalog.get(name), record, num_classes, is_train=not only_tested)
    except InputError as error:
        return [str(error)]
    return []


def shorten(sentences: list[str]) -> list[str]:
    """The first few, and how many more there are."""
    more = len(sentences) - EXAMPLES
    return [*sentences[:EXAMPLES], *([f"... and {more} more files."] if more > 0 else [])]


def describe(seen: Inspection, names: list[str], unit: str) -> list[str]:
    """The facts: classes and how much of each there is, empty images, the most segments."""
    total = sum(seen.pixels.values()) or 1
    width = max(map(len, names), default=0)
    lines = [f"  {name:<{width}}  {100 * seen.pixels[i] / total:6.2f} % of {unit}" for i, name in enumerate(names)]
    absent = [name for index, name in enumerate(names) if not seen.pixels[index]]
    return [
        *(line for index, line in enumerate(lines) if seen.pixels[index]),
        f"classes that do not occur: {len(absent)} of {len(names)}" + (f", first {absent[0]}" if absent else ""),
        f"images without annotation: {len(seen.empty)}" + (f", first {seen.empty[0]}" if seen.empty else ""),
        f"most segments in an image: {seen.most_segments[0]} {seen.most_segments[1]}",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Looks at a dataset and prints what it found; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        register_all(args.root)
        cfg = load_config(args.config_file)
        register_own(read_own_datasets(cfg.DATASETS.OWN))
        records = load_dataset(args.name, "NAME")
        metadata = MetadataCatalog.get(args.name)
        names = class_names(metadata, records[0])
        if names is None:
            raise InputError(
                f"Dataset {args.name} names no classes; set stuff_classes or thing_classes in its metadata."
            )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = choose(records, len(records) if args.all else args.images)
    seen = Inspection(len(names), ignore_label_of(metadata))
    for record in ProgressLine(f"checking {args.name}", items=chosen, unit="images"):
        seen.add(record)
    unit = "pixels" if {"sem_seg_file_name", "pan_seg_file_name"} & records[0].keys() else "instances"
    print(f"{args.name}: {len(chosen)} of {len(records)} images looked at, {len(names)} classes")
    print("\n".join(map(printable, describe(seen, names, unit))))
    queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES if args.queries is None else args.queries
    problems = find_misfits(cfg, args.name, records[0]) + find_problems(seen, find_unpaired(metadata, records), queries)
    print("\n".join(f"FOUND: {printable(problem)}" for problem in problems) or "nothing wrong was found")
    return 1 if problems else 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
