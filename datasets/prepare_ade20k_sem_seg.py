#!/usr/bin/env python
"""Write ADE20K's semantic labels as MaskFormer and Detectron2 read them.

``annotations/`` has 0 for no label and classes from 1; ``annotations_detectron2/`` has 255 and classes from 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

NUM_CLASSES = 150
IGNORED = 255


def shifted(label_map: np.ndarray) -> np.ndarray:
    """Shift 0..150 to 255, 0..149; (H,W) uint8 to (H,W) uint8."""
    return np.where(label_map == 0, IGNORED, label_map - 1).astype(np.uint8)


def convert(source: Path, target: Path) -> None:
    """Convert one label file; the target is there completely or not at all."""
    label_map = np.asarray(Image.open(source))
    if label_map.ndim != 2 or label_map.max() > NUM_CLASSES:
        sys.exit(f"{source} is no ADE20K label: expected one channel with values 0..{NUM_CLASSES}.")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    Image.fromarray(shifted(label_map)).save(unfinished, format="PNG")
    os.replace(unfinished, target)


def main() -> None:
    """Convert both splits under the folder of all datasets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default_root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--root", default=default_root, help="folder that holds ADEChallengeData2016 (%(default)s)")
    folder = Path(parser.parse_args().root) / "ADEChallengeData2016"
    for split in ("training", "validation"):
        sources = sorted((folder / "annotations" / split).glob("*.png"))
        if not sources:
            sys.exit(f"{folder / 'annotations' / split} has no labels (*.png); set DETECTRON2_DATASETS or --root.")
        target_folder = folder / "annotations_detectron2" / split
        target_folder.mkdir(parents=True, exist_ok=True)
        for source in tqdm(sources, desc=split, unit="label"):
            convert(source, target_folder / source.name)
        print(f"{len(sources)} labels written to {target_folder}")


if __name__ == "__main__":
    main()
