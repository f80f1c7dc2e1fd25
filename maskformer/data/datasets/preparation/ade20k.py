"""ADE20K, 150 classes: semantic labels from 0, panoptic maps, instances.

Panoptic and instance labels are made from the same two files: ``annotations/`` says the class of each pixel,
``annotations_instance/`` the thing (red: category 1..100) and its number in the image (green).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle

from maskformer.structures import InputError

from ...files.masks import encode_segments
from ...files.reading import check_same_size, read_class_map, read_rgb
from ..ade20k import instance_categories
from ..registration import read_categories
from .files import Job, find_files, pair_files, write_image, write_json

NUM_CLASSES = 150
IGNORED = 255
SEGMENTS_PER_CLASS = 1000  # the dataset's label_divisor


def find_annotated(folder: Path, split_folder: str) -> list[tuple[Path, Path]]:
    """Find the semantic and the instance annotation of every image of "training" or "validation".

    Raises:
        InputError: see ``pair_files``.
    """
    labels = folder / "annotations" / split_folder
    instances = folder / "annotations_instance" / split_folder
    images = find_files(folder / "images" / split_folder, "*.jpg")
    pair_files(images, find_files(labels, "*.png"), f"labels in {labels}")
    return pair_files(find_files(labels, "*.png"), find_files(instances, "*.png"), f"instance labels in {instances}")


def prepare_semantic(job: Job) -> None:
    """Write ``annotations_detectron2``: source the label, target the shifted one."""
    (source,), (target,) = job.sources, job.targets
    write_image(shift_labels(_read_semantic(source)), target)


def prepare_panoptic(job: Job) -> None:
    """Write the panoptic PNG and its entry for the JSON: sources label and instances."""
    label_file, _ = job.sources
    png, part = job.targets
    segment_map = merge_labels(*_read_both(job))
    blue, green, red = segment_map >> 16, segment_map >> 8 & 255, segment_map & 255
    write_image(np.stack([red, green, blue], axis=2).astype(np.uint8), png)
    segments = list_segments(segment_map)
    annotation = {"image_id": label_file.stem, "file_name": png.name, "segments_info": segments}
    write_json({"image": _image_entry(label_file, segment_map), "annotation": annotation}, part)


def prepare_instances(job: Job) -> None:
    """Write an image's entry for the JSON of instances: sources label and instances."""
    label_file, _ = job.sources
    (part,) = job.targets
    label_map, instances = _read_both(job)
    write_json({"image": _image_entry(label_file, label_map), "annotations": list_instances(instances)}, part)


def _image_entry(label_file: Path, label_map: np.ndarray) -> dict[str, Any]:
    height, width = label_map.shape
    return {"id": label_file.stem, "file_name": f"{label_file.stem}.jpg", "width": width, "height": height}


def merge_annotations(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the panoptic JSON of the entries of all images."""
    return {
        "images": [entry["image"] for entry in entries],
        "annotations": [entry["annotation"] for entry in entries],
        "categories": read_categories("ade20k_150.json"),
    }


def merge_instances(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Make the JSON of instances of the entries of all images; annotations are numbered from 1."""
    annotations = [
        {**annotation, "image_id": entry["image"]["id"]} for entry in entries for annotation in entry["annotations"]
    ]
    return {
        "images": [entry["image"] for entry in entries],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
        "categories": instance_categories(),
    }


def shift_labels(label_map: np.ndarray) -> np.ndarray:
    """Shift 0 (no label), 1..150 to 255, 0..149; (H,W) integers to (H,W) uint8."""
    return np.where(label_map == 0, IGNORED, label_map - 1).astype(np.uint8)


def merge_labels(label_map: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Number the segments of an image: an instance each, and one of each stuff class; things without instance are void.

    Where the two files disagree about a pixel, the instance counts, as in the released panoptic labels.

    Args:
        label_map: (H,W), 0 or class + 1.
        instances: (H,W,2), the category 1..100 and the instance's number from 1, or zeros.

    Returns:
        (H,W) int32: 0, or (class + 1) x 1000 + the instance's number (stuff: 0).
    """
    is_stuff = np.array([True, *(not category["isthing"] for category in read_categories("ade20k_150.json"))])
    stuff = np.where(is_stuff[label_map], label_map.astype(np.int32), 0) * SEGMENTS_PER_CLASS
    things = (_class_of_instance()[instances[..., 0]] + 1) * SEGMENTS_PER_CLASS + instances[..., 1]
    return np.where(instances[..., 1] > 0, things, stuff).astype(np.int32)


def list_segments(segment_map: np.ndarray) -> list[dict[str, Any]]:
    """List the segments of ``merge_labels`` as COCO's panoptic format does, in the order of classes."""
    ids = np.flatnonzero(np.bincount(segment_map.ravel()))
    masks = encode_segments(segment_map, ids[ids > 0].tolist())
    return [
        {
            "id": segment_id,
            "category_id": segment_id // SEGMENTS_PER_CLASS - 1,
            "area": int(rle.area(mask)),
            "bbox": [int(value) for value in rle.toBbox(mask)],
            "iscrowd": 0,
        }
        for segment_id, mask in masks.items()
    ]


def list_instances(instances: np.ndarray) -> list[dict[str, Any]]:
    """List the instances (H,W,2) of ``merge_labels`` as COCO's format does, with RLE masks and categories 0..149."""
    instance_map = instances[..., 0].astype(np.int32) * 256 + instances[..., 1]
    ids = [i for i in np.flatnonzero(np.bincount(instance_map.ravel())).tolist() if i % 256]
    return [
        {
            "category_id": int(_class_of_instance()[instance_id // 256]),
            "iscrowd": 0,
            "area": int(rle.area(mask)),
            "bbox": rle.toBbox(mask).tolist(),
            "segmentation": mask,
        }
        for instance_id, mask in encode_segments(instance_map, ids).items()
    ]


@cache
def _class_of_instance() -> np.ndarray:
    """(101,) the class 0..149 of each instance category: they are the things in order; index 0 is none."""
    return np.array([-1, *(c["id"] for c in read_categories("ade20k_150.json") if c["isthing"])], dtype=np.int32)


def _read_semantic(file: Path) -> np.ndarray:
    label_map = read_class_map(str(file))
    if label_map.max() > NUM_CLASSES:
        raise InputError(f"{file} is no ADE20K label: it holds {label_map.max()}; expected values 0..{NUM_CLASSES}.")
    return label_map


def _read_both(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """The label (H,W) and the instances (H,W,2) of an image."""
    label_file, instance_file = job.sources
    label_map = _read_semantic(label_file)
    instances = read_rgb(str(instance_file), "Instance label")[..., :2]
    check_same_size(instances, str(instance_file), label_map, str(label_file))
    if instances[..., 0].max() >= len(_class_of_instance()):
        raise InputError(
            f"{instance_file} holds the category {instances[..., 0].max()} in its red channel; expected 0..100: take "
            "annotations_instance of the scene parsing challenge."
        )
    return label_map, instances
