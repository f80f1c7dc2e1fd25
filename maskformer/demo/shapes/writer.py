"""Writes the built-in dataset as real files: JPEG images, PNG labels, COCO panoptic and COCO instance JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from maskformer.data.datasets.shapes import CATEGORIES, FOLDER, THINGS, Category, dataset_id
from maskformer.structures import InputError

from .scene import MIN_SIDE, Scene, draw_scene

SPLITS = ("train", "val")
MANIFEST = "shapes.json"
FORMAT_VERSION = 2  # raise it whenever the pictures or the files change: what older versions wrote is then drawn anew
_JPEG_QUALITY = 92

_PICTURES = ("", "panoptic_", "sem_seg_")  # beginnings of the folders of a split

Record = dict[str, Any]
Job = tuple[str, int]  # split and index of an image
Progress = Callable[[Sequence[Job]], Iterable[Job]]


def scene_of(seed: int, split: str, index: int, image_size: tuple[int, int]) -> Scene:
    """Draw the scene that image ``index`` of a split shows; it depends on nothing else."""
    return draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), image_size)


def _segment_ids(categories: tuple[int, ...]) -> np.ndarray:
    """Choose distinct uint32 ids R + 256 G + 65536 B, never 0, near to the colours of the segments' categories."""
    ids: list[int] = []
    for category in categories:
        red, green, blue = CATEGORIES[category].color
        shades = (red + 256 * green + 65536 * ((blue + 14 * step) % 256) for step in range(256))
        ids.append(next(shade for shade in shades if shade not in ids))
    return np.array(ids, np.uint32)


def _encode(extension: str, picture: np.ndarray, *options: int) -> bytes:
    """Give the bytes of an image file of a grey or RGB picture."""
    channels_last = picture[..., ::-1] if picture.ndim == 3 else picture  # OpenCV takes BGR
    return cv2.imencode(extension, np.ascontiguousarray(channels_last), options)[1].tobytes()


def _segment_records(scene: Scene, ids: np.ndarray) -> tuple[list[Record], list[Record]]:
    """Describe all segments for the panoptic JSON, and the things for the instance JSON."""
    masks = np.ascontiguousarray(scene.segment_map.T) == np.arange(len(ids), dtype=np.uint8)[:, None, None]
    encoded = coco_mask.encode(masks.view(np.uint8).T)  # pycocotools takes (height, width, segments), columns first
    areas, boxes = coco_mask.area(encoded).tolist(), coco_mask.toBbox(encoded).astype(int).tolist()
    segments, things = [], []
    for category, segment_id, area, box, rle in zip(scene.categories, ids.tolist(), areas, boxes, encoded, strict=True):
        record = {"category_id": dataset_id(category), "area": area, "bbox": box, "iscrowd": 0}
        segments.append({"id": segment_id, **record})
        if CATEGORIES[category].is_thing:
            things.append({**record, "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}})
    return segments, things


def _write_pictures(folder: Path, split: str, stem: str, scene: Scene, ids: np.ndarray) -> None:
    """Write the image and its two label maps."""
    jpeg = _encode(".jpg", scene.image, cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY)
    (folder / split / f"{stem}.jpg").write_bytes(jpeg)
    colors = np.stack([ids, ids >> 8, ids >> 16], axis=1).astype(np.uint8)
    for kind, table in (("panoptic", colors), ("sem_seg", np.array(scene.categories, np.uint8))):
        picture = table.take(scene.segment_map, axis=0)
        (folder / f"{kind}_{split}" / f"{stem}.png").write_bytes(_encode(".png", picture))


def _category_records(categories: tuple[Category, ...]) -> list[Record]:
    return [
        {"id": dataset_id(i), "name": c.name, "isthing": int(c.is_thing), "color": list(c.color), "supercategory": ""}
        for i, c in enumerate(categories)
    ]


def _write_all(folder: Path, parameters: Record, progress: Progress) -> None:
    """Draw the whole dataset into a new folder; JSON files follow the images, and the manifest comes last."""
    for name in (*(f"{kind}{split}" for split in SPLITS for kind in _PICTURES), "annotations"):
        (folder / name).mkdir(parents=True)
    height, width = parameters["image_size"]
    images, annotations, instances = ({split: list[Record]() for split in SPLITS} for _ in range(3))
    for split, index in progress([(s, index) for s in SPLITS for index in range(parameters[f"num_{s}"])]):
        scene = scene_of(parameters["seed"], split, index, (height, width))
        stem, image_id, ids = f"{index:06d}", index + 1, _segment_ids(scene.categories)
        _write_pictures(folder, split, stem, scene, ids)
        segments, things = _segment_records(scene, ids)
        images[split].append({"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width})
        annotations[split].append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments})
        first_id = len(instances[split]) + 1
        instances[split] += [{"id": n, "image_id": image_id, **thing} for n, thing in enumerate(things, first_id)]
    for name, records, categories in (("panoptic", annotations, CATEGORIES), ("instances", instances, THINGS)):
        for split in SPLITS:
            content = {"images": images[split], "annotations": records[split]}
            content["categories"] = _category_records(categories)
            (folder / "annotations" / f"{name}_{split}.json").write_text(json.dumps(content))
    (folder / MANIFEST).write_text(json.dumps(parameters, indent=1))


def _check(parameters: Record) -> None:
    for key, smallest in (("num_train", 1), ("num_val", 1), ("seed", 0)):
        if parameters[key] < smallest:
            raise InputError(f"shapes: {key} is {parameters[key]}, expected {smallest} or more; change {key}.")
    if min(parameters["image_size"]) < MIN_SIDE:
        size = "x".join(map(str, parameters["image_size"]))
        raise InputError(f"shapes: image_size is {size}, expected {MIN_SIDE} or more each way; change image_size.")


def _is_complete(folder: Path, parameters: Record) -> bool:
    """Tell whether a folder holds just what these parameters give: the same manifest, and no image or label missing."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} exists without {MANIFEST}, so it is not ours to replace; move it or change root.")
    if (folder / MANIFEST).read_text() != json.dumps(parameters, indent=1):
        return False
    counts = {f"{kind}{s}": parameters[f"num_{s}"] for s in SPLITS for kind in _PICTURES}
    counts["annotations"] = 2 * len(SPLITS)
    return all(len(list((folder / name).glob("*.*"))) == count for name, count in counts.items())


def generate_shapes(
    root: str | Path,
    *,
    num_train: int = 2000,
    num_val: int = 200,
    image_size: tuple[int, int] = (128, 160),
    seed: int = 0,
    progress: Progress = iter,
) -> Path:
    """Write the dataset to ``root/shapes``, unless it is there already with the same parameters.

    It is written beside its place and moved there at the end, so what an interruption leaves is never taken for a
    dataset. Only one process at a time may write under a root.

    Args:
        root: the folder of all datasets.
        num_train: images to train on. Image i stays the same, however many there are.
        num_val: images held out.
        image_size: (height, width) in pixels.
        seed: 0 or more; other seeds give other scenes.
        progress: gives the images that it gets to draw and shows how far they are; called if there is any to draw.

    Returns:
        The dataset's folder.

    Raises:
        InputError: a parameter is out of range, or the folder cannot be written or is something else's.
    """
    parameters = {
        "format_version": FORMAT_VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "seed": seed,
    }
    _check(parameters)
    folder = Path(root) / FOLDER
    try:
        if not _is_complete(folder, parameters):
            partial = folder.with_name(f"{FOLDER}.partial")
            if partial.exists():
                shutil.rmtree(partial)
            _write_all(partial, parameters, progress)
            outdated = folder.with_name(f"{FOLDER}.outdated")
            shutil.rmtree(outdated, ignore_errors=True)
            if folder.exists():
                folder.rename(outdated)
            partial.rename(folder)
            shutil.rmtree(outdated, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}); choose another folder with root.") from error
    return folder
