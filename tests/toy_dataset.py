"""A tiny dataset of drawn rectangles, in every format: label maps, COCO instance JSON, COCO panoptic JSON.

water (stuff, blue), box (red) and ball (green) are things.
Usage: python toy_dataset.py FOLDER, or build(...) with what a case changes.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

NAMES = ("water", "box", "ball")
COLORS = ((20, 30, 200), (220, 20, 20), (20, 220, 20))


def draw(rng, height=64, width=80, count=3):
    """One picture: (H,W,3) uint8, (H,W) number of the object (0: water), class of each number."""
    picture = np.full((height, width, 3), COLORS[0], np.uint8) + rng.integers(0, 20, (height, width, 3), dtype=np.uint8)
    objects, classes = np.zeros((height, width), np.int32), [0]
    for number in range(1, count + 1):
        kind, side = int(rng.integers(1, 3)), int(rng.integers(12, 24))
        top, left = int(rng.integers(0, height - 24)), int(rng.integers(0, width - 24))
        picture[top : top + side, left : left + side] = COLORS[kind]
        objects[top : top + side, left : left + side] = number
        classes.append(kind)
    return picture, objects, classes


def build(folder, count=6, seed=0, first_annotation_id=1, category_ids=(1, 2, 3), without=(), objects=3):
    """Write images/, labels/ (0, 1, 2), panoptic/, and both JSON files; ``without``: fields left out of both."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    for name in ("images", "labels", "panoptic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images, instances, panoptic = [], [], []
    for index in range(count):
        name = f"{index:03d}.png"
        picture, numbers, classes = draw(rng, count=objects)
        Image.fromarray(picture).save(folder / "images" / name)
        Image.fromarray(np.array(classes, np.uint8)[numbers]).save(folder / "labels" / name)
        images.append({"id": index + 1, "file_name": name, "height": 64, "width": 80})
        segments = []
        for number, kind in enumerate(classes):
            mask = numbers == number
            if not mask.any():
                continue
            rows, columns = np.nonzero(mask)
            box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            entry = {"category_id": category_ids[kind], "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
            entry = {key: value for key, value in entry.items() if key not in without}
            segments.append({"id": number + 1, **entry})
            if kind:
                runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                runs["counts"] = runs["counts"].decode()
                instances.append(
                    {"id": first_annotation_id + len(instances), "image_id": index + 1, "segmentation": runs, **entry}
                )
        ids = np.where(numbers >= 0, numbers + 1, 0)
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(
            folder / "panoptic" / name
        )
        panoptic.append({"image_id": index + 1, "file_name": name, "segments_info": segments})
    categories = [{"id": category_ids[kind], "name": NAMES[kind], "isthing": int(kind > 0)} for kind in range(3)]
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": categories[1:]})
    )
    (folder / "panoptic.json").write_text(
        json.dumps({"images": images, "annotations": panoptic, "categories": categories})
    )


if __name__ == "__main__":
    build(sys.argv[1])
