#!/usr/bin/env python
"""Write ADE20K's semantic labels as MaskFormer and Detectron2 read them.

``annotations/`` has 0 for no label and classes from 1; ``annotations_detectron2/`` has 255 and classes from 0.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from maskformer.data.datasets.preparation.ade20k import prepare_semantic
from maskformer.data.datasets.preparation.files import Job, find_files, pair_files, run_command, run_jobs


def main(args: Namespace) -> None:
    """Shift the labels of both splits."""
    folder = Path(args.root) / "ADEChallengeData2016"
    for split in ("training", "validation"):
        images, sources = folder / "images" / split, folder / "annotations" / split
        pairs = pair_files(find_files(images, "*.jpg"), find_files(sources, "*.png"), f"labels in {sources}")
        target = folder / "annotations_detectron2" / split
        jobs = [Job((label,), (target / label.name,)) for _, label in pairs]
        counts = run_jobs(prepare_semantic, jobs, workers=args.workers, title=split, redo=args.redo)
        print(f"{target}: {len(jobs)} labels, {counts}")


if __name__ == "__main__":
    run_command(__doc__.splitlines()[0], main)
