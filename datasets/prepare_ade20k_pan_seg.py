#!/usr/bin/env python
"""Write ADE20K's panoptic labels, PNG and JSON, from its semantic and its instance annotations."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from maskformer.data.datasets.preparation.ade20k import find_annotated, merge_annotations, prepare_panoptic
from maskformer.data.datasets.preparation.files import Job, run_and_merge, run_command


def main(args: Namespace) -> None:
    """Make ``ade20k_panoptic_{train,val}/*.png`` and ``ade20k_panoptic_{train,val}.json``."""
    folder = Path(args.root) / "ADEChallengeData2016"
    for split, split_folder in (("train", "training"), ("val", "validation")):
        name = f"ade20k_panoptic_{split}"
        parts = folder / f".{name}.parts"
        jobs = [
            Job(sources, (folder / name / sources[0].name, parts / f"{sources[0].stem}.json"))
            for sources in find_annotated(folder, split_folder)
        ]
        target = folder / f"{name}.json"
        counts = run_and_merge(
            prepare_panoptic, merge_annotations, jobs, target, workers=args.workers, title=name, redo=args.redo
        )
        print(f"{target}: {len(jobs)} images, {counts}")


if __name__ == "__main__":
    run_command(__doc__.splitlines()[0], main)
