#!/usr/bin/env python
"""Write "everyday", a semantic dataset of eight classes, from the pictures of COCO, ADE20K and VOC that are there.

Of each source and split, at most MOST pictures, evenly spread; what belongs to none of the classes is ignored (255).
configs/everyday describes the result, and docs/train.md shows what is learnt from it.
"""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

import maskformer.data.datasets
from maskformer.data.datasets.preparation.files import read_list, run_command, write_image
from maskformer.structures import InputError

MOST = 400
IGNORED = 255
# The names of COCO's panoptic, ADE20K's and VOC's classes without what comes after a comma, "-other" or "-merged".
CLASSES = {
    "person": "person",
    "animal": "animal bear bird cat cow dog elephant giraffe horse sheep zebra",
    "vehicle": "aeroplane airplane bicycle bike boat bus car minibike motorbike motorcycle plane ship train truck van",
    "furniture": """armchair bed bench bookcase cabinet chair chest_of_drawers coffee_table couch counter cupboard desk
        dining_table diningtable seat shelf sofa swivel_chair table wardrobe""",
    "building": """bridge building ceiling column curtain door door-stuff fence house skyscraper wall wall-brick
        wall-stone wall-tile wall-wood window window-blind windowpane""",
    "ground": """dirt_track earth field floor floor-wood grass gravel path pavement platform playingfield railroad road
        rug runway sand sidewalk snow""",
    "plant": "bush flower palm plant potted_plant pottedplant tree",
    "sky": "sky",
}
VOC = (
    *(
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
    ),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
Pair = tuple[Path, Callable[[], np.ndarray]]  # an image, and what reads its label


def class_of(name: str) -> int:
    """The class that one of a source's classes belongs to; ``IGNORED``: none."""
    plain = re.sub(r"(-other|-merged)+$", "", name.split(",")[0].strip()).replace(" ", "_")
    found = [number for number, names in enumerate(CLASSES.values()) if plain in names.split()]
    return found[0] if found else IGNORED


def read_map(label: Path, table: Mapping[int, int]) -> np.ndarray:
    """A label map, (H,W) uint8, with other numbers."""
    values, places = np.unique(np.array(Image.open(label)), return_inverse=True)
    numbers = np.array([table.get(int(value), IGNORED) for value in values], np.uint8)
    return numbers[places].reshape(Image.open(label).size[::-1])


def read_panoptic(label: Path, segments: list[dict[str, int]], classes: Mapping[int, int]) -> np.ndarray:
    """A panoptic PNG as label map, (H,W) uint8."""
    red, green, blue = np.moveaxis(np.array(Image.open(label).convert("RGB"), np.int64), -1, 0)
    ids, places = np.unique(red + 256 * green + 65536 * blue, return_inverse=True)
    table = {segment["id"]: classes[segment["category_id"]] for segment in segments}
    return np.array([table.get(int(i), IGNORED) for i in ids], np.uint8)[places].reshape(red.shape)


def find_coco(root: Path, split: str) -> Iterator[Pair]:
    """Pictures of COCO panoptic."""
    annotations = root / "coco" / "annotations" / f"panoptic_{split}2017.json"
    if not annotations.is_file():
        return
    content = json.loads(annotations.read_text(encoding="utf-8"))
    classes = {category["id"]: class_of(category["name"]) for category in content["categories"]}
    for entry in content["annotations"]:
        label = root / "coco" / f"panoptic_{split}2017" / entry["file_name"]
        image = root / "coco" / f"{split}2017" / f"{label.stem}.jpg"
        yield image, lambda label=label, entry=entry: read_panoptic(label, entry["segments_info"], classes)


def find_ade20k(root: Path, split: str) -> Iterator[Pair]:
    """Pictures of ADE20K, whose labels count from 1."""
    categories = Path(maskformer.data.datasets.__file__).parent / "categories" / "ade20k_150.json"
    names = [category["name"] for category in json.loads(categories.read_text(encoding="utf-8"))]
    table = {number: class_of(name) for number, name in enumerate(names, start=1)}
    folder = {"train": "training", "val": "validation"}[split]
    for label in sorted((root / "ADEChallengeData2016" / "annotations" / folder).glob("*.png")):
        image = root / "ADEChallengeData2016" / "images" / folder / f"{label.stem}.jpg"
        yield image, lambda label=label: read_map(label, table)


def find_voc(root: Path, split: str) -> Iterator[Pair]:
    """Pictures of VOC 2012; its background may be anything, so it is ignored."""
    folder = root / "VOCdevkit" / "VOC2012"
    table = {number: class_of(name) for number, name in enumerate(VOC)}
    for name in read_list(folder / "ImageSets" / "Segmentation" / f"{split}.txt") if folder.is_dir() else ():
        label = folder / "SegmentationClass" / f"{name}.png"
        yield folder / "JPEGImages" / f"{name}.jpg", lambda label=label: read_map(label, table)


def main(args: Namespace) -> None:
    """Copy the pictures and write their labels."""
    root = Path(args.root)
    for split in ("train", "val"):
        folder, count = root / "everyday" / split, 0
        for find in (find_coco, find_ade20k, find_voc):
            pairs = list(find(root, split))
            for image, read_label in pairs[:: -(-len(pairs) // MOST) or 1]:
                target = folder / "images" / image.name
                (folder / "labels").mkdir(parents=True, exist_ok=True)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(image, target)
                write_image(read_label(), folder / "labels" / f"{image.stem}.png")
                count += 1
        if not count:
            raise InputError(
                f"There are no pictures of COCO, ADE20K or VOC for {split} in {root} (datasets/README.md)."
            )
        print(f"{folder}: {count} pictures")


if __name__ == "__main__":
    run_command(__doc__.splitlines()[0], main)
