#!/usr/bin/env python
"""Write the images of ADE20K (2021) at most 512 pixels high or wide on their short side, and labels of 847 classes."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from maskformer.data.datasets.preparation.ade20k_full import find_full, prepare_full
from maskformer.data.datasets.preparation.files import Job, run_command, run_jobs


def main(args: Namespace) -> None:
    """Make ``images_detectron2/`` (JPEG) and ``annotations_detectron2/`` (16-bit TIFF) of both splits."""
    folder = Path(args.root) / "ADE20K_2021_17_01"
    for split in ("training", "validation"):
        images, labels = folder / "images_detectron2" / split, folder / "annotations_detectron2" / split
        jobs = [
            Job((image, label), (images / image.name, labels / f"{image.stem}.tif"))
            for image, label in find_full(folder / "images" / "ADE" / split)
        ]
        counts = run_jobs(prepare_full, jobs, workers=args.workers, title=split, redo=args.redo)
        print(f"{labels}: {len(jobs)} labels, {counts}")


if __name__ == "__main__":
    run_command(__doc__.splitlines()[0], main)
