"""Writes the built-in dataset: ``python -m maskformer.tools.make_shapes [--root DIR] [--train N] [--val N]``."""

from __future__ import annotations

import argparse
import os
import sys

from maskformer.demo.shapes import generate_shapes
from maskformer.reports.console import ProgressLine
from maskformer.runs.screen import keep_warnings_off_screen
from maskformer.structures import InputError


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m maskformer.tools.make_shapes", description=__doc__.split(":")[0])
    default_root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default_root, help="folder of all datasets (default: %(default)s)")
    parser.add_argument("--train", type=int, default=2000, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="held-out images (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 160), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Generates the dataset, or finds that it is there; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        folder = generate_shapes(
            args.root,
            num_train=args.train,
            num_val=args.val,
            image_size=tuple(args.size),
            seed=args.seed,
            progress=lambda jobs: ProgressLine("drawing shapes", items=jobs, unit="images", stream=sys.stdout),
        )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"the shapes dataset is in {folder}")
    return 0


if __name__ == "__main__":
    keep_warnings_off_screen()
    sys.exit(main())
