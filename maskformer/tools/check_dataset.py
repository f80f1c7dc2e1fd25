"""Checks registered datasets on the CPU before a training: ``python -m maskformer.tools.check_dataset NAME [--all]``.

Exit codes: 0 all is well, 1 something was found, 2 a dataset is not there or the command is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from maskformer.config import load_config
from maskformer.config.own_datasets import read_own_datasets
from maskformer.data.checks.findings import Finding, class_shares, describe, find_problems, unit_of
from maskformer.data.checks.inspection import Inspection, find_copies, find_unpaired
from maskformer.data.checks.verification import check_num_classes, class_names, load_dataset
from maskformer.data.datasets import register_all
from maskformer.data.datasets.classes import ignore_label_of
from maskformer.data.datasets.own import register_own
from maskformer.reports.console import ProgressLine
from maskformer.reports.dataset_page import Checked, write_dataset_page
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError, printable

_ROOT = "folder of all datasets (default: %(default)s); names that Detectron2 registers follow $DETECTRON2_DATASETS"
_CONFIG = "the dataset is checked for its model; its DATASETS.OWN may describe the dataset"


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m maskformer.tools.check_dataset", description=__doc__.split(":")[0])
    several = "as in DATASETS.TRAIN; of several, each is also searched for images of those before it"
    parser.add_argument("names", metavar="NAME", nargs="+", help=several)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--all", action="store_true", help="look at every image")
    amount.add_argument("--images", type=int, default=200, help="how many to look at, evenly spread (%(default)s)")
    parser.add_argument("--config-file", default="", metavar="FILE", help=_CONFIG)
    default_root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default_root, help=_ROOT)
    parser.add_argument("--queries", type=int, help="MODEL.MASK_FORMER.NUM_OBJECT_QUERIES (the configuration's)")
    parser.add_argument("--page", metavar="FILE", type=Path, help="write an HTML page with pictures of what is odd")
    return parser


@dataclass
class Dataset:
    """A dataset as it is registered.

    Attributes:
        name: in the catalogs.
        records: all its entries, one at least.
        metadata: as in the catalog.
        classes: their names.
    """

    name: str
    records: list[dict[str, Any]]
    metadata: Metadata
    classes: list[str]


def load(name: str) -> Dataset:
    """Find a dataset and what it says of its classes.

    Raises:
        InputError: it is not there, or names no classes.
    """
    records = load_dataset(name, "NAME")
    metadata = MetadataCatalog.get(name)
    classes = class_names(metadata, records[0])
    if classes is None:
        raise InputError(f"Dataset {name} names no classes; set stuff_classes or thing_classes in its metadata.")
    return Dataset(name, records, metadata, list(classes))


def choose(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """So many entries, evenly spread from the first to the last."""
    if count >= len(records):
        return records
    return [records[index] for index in np.linspace(0, len(records) - 1, count).round().astype(int)]


def find_misfits(cfg: CfgNode, dataset: Dataset) -> list[str]:
    """Compare a dataset, by an entry, with the model of a configuration, where that has one: 0 or 1 sentence."""
    if cfg.MODEL == load_config("").MODEL:
        return []
    only_tested = dataset.name in cfg.DATASETS.TEST and dataset.name not in cfg.DATASETS.TRAIN
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    try:
        check_num_classes(dataset.name, dataset.metadata, dataset.records[0], num_classes, is_train=not only_tested)
    except InputError as error:
        return [str(error)]
    return []


def find_shared(datasets: list[Dataset]) -> list[str]:
    """Find images of a dataset that are in an earlier one too, under any name: one sentence a pair of datasets."""
    found = []
    for first, second in itertools.combinations(datasets, 2):
        files, others = ([record["file_name"] for record in dataset.records] for dataset in (second, first))
        copies = find_copies(files, others)
        if copies:
            found.append(
                f"{len(copies)} of {len(files)} images of {second.name} are in {first.name} too, first {copies[0][0]} "
                f"({copies[0][1]}): scores on images of the training say nothing; take them out of one of the two."
            )
    return found


def inspect(dataset: Dataset, cfg: CfgNode, args: argparse.Namespace) -> Checked:
    """Look at a dataset's images and judge them."""
    seen = Inspection.of(dataset.records[0], len(dataset.classes), ignore_label_of(dataset.metadata))
    chosen = choose(dataset.records, len(dataset.records) if args.all else args.images)
    for record in ProgressLine(f"checking {dataset.name}", items=chosen, unit="images"):
        seen.add(record)
    queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES if args.queries is None else args.queries
    block = (dataset.metadata.get("own_key") or "").rpartition(".")[0]
    of_files = [*find_misfits(cfg, dataset), *find_unpaired(dataset.metadata, dataset.records)]
    findings = [*map(Finding, of_files), *find_problems(seen, dataset.classes, queries, block)]
    return Checked(dataset.name, len(dataset.records), dataset.classes, dataset.metadata, seen, findings)


def report(checked: Checked) -> None:
    """Print the facts about a dataset, then what is wrong."""
    seen, shares = checked.seen, class_shares(checked.seen, checked.classes)
    print(f"{checked.name}: {len(seen.sights)} of {checked.count} images looked at, {len(checked.classes)} classes")
    width = max(len(share.name) for share in shares)
    for share in shares:
        if share.amount:
            print(printable(f"  {share.name:<{width}}  {100 * share.share:6.2f} % of {unit_of(seen)}"))
    print("\n".join(map(printable, describe(seen, checked.classes))))
    found = [f"FOUND: {printable(finding.sentence)}" for finding in checked.findings]
    print("\n".join(found) or "nothing wrong was found")


def main(arguments: list[str] | None = None) -> int:
    """Looks at datasets and prints what it found; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        if args.page is not None and not args.page.parent.is_dir():
            raise InputError(f"--page {args.page} cannot be written: {args.page.parent} is no folder.")
        register_all(args.root)
        cfg = load_config(args.config_file)
        register_own(read_own_datasets(cfg.DATASETS.OWN))
        datasets = [load(name) for name in dict.fromkeys(args.names)]
        checked = []
        for dataset in datasets:
            checked.append(inspect(dataset, cfg, args))
            report(checked[-1])
        shared = find_shared(datasets)
        for sentence in shared:
            print(f"FOUND: {printable(sentence)}")
        if args.page is not None:
            write_dataset_page(args.page, checked, shared)
            print(f"pictures: {printable(str(args.page))}")
    except InputError as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    return 1 if shared or any(of_one.findings for of_one in checked) else 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
