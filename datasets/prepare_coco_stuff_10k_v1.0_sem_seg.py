#!/usr/bin/env python
"""Sort the images of COCO-Stuff 10k (version 1.0) into splits and write their MATLAB labels as PNG."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from maskformer.data.datasets.preparation.coco_stuff_10k import find_stuff, prepare_stuff
from maskformer.data.datasets.preparation.files import Job, run_command, run_jobs


def main(args: Namespace) -> None:
    """Make ``images_detectron2/`` and ``annotations_detectron2/`` of both splits."""
    folder = Path(args.root) / "coco" / "coco_stuff_10k"
    for split in ("train", "test"):
        images, labels = folder / "images_detectron2" / split, folder / "annotations_detectron2" / split
        jobs = [
            Job((image, label), (images / image.name, labels / f"{label.stem}.png"))
            for image, label in find_stuff(folder, split)
        ]
        counts = run_jobs(prepare_stuff, jobs, workers=args.workers, title=split, redo=args.redo)
        print(f"{labels}: {len(jobs)} labels, {counts}")


if __name__ == "__main__":
    run_command(__doc__.splitlines()[0], main)
