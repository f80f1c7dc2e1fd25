"""Loading one image, against decoding its files and against Detectron2's augmentations of whole images."""

from __future__ import annotations

import os
import pickle
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as rle
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import BoxMode
from PIL import Image

from maskformer.config import load_config
from maskformer.data import build_mapper
from maskformer.data.datasets import register_all
from maskformer.structures import InputError

Record = dict[str, Any]
Work = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class _Recipe:
    """One recipe of augmentation and the image it is measured on.

    Attributes:
        mapper: ``INPUT.DATASET_MAPPER_NAME``.
        dataset: a registered training or validation set that has such images.
        image: the start of the image's file name there; "": any.
        size: (height, width) of the image that is made up where the dataset is absent.
        classes: K.
        segments: of that image.
        crop: (height, width) in pixels; None: DETR's, or none.
        short_edges: (least, largest) of the shortest edge, in pixels.
    """

    mapper: str
    dataset: str
    image: str
    size: tuple[int, int]
    classes: int
    segments: int
    short_edges: tuple[int, int]
    crop: int | None = None


_FOLDERS: list[tempfile.TemporaryDirectory] = []  # of what is made up; they go with the process

_ADE20K = {"image": "ADE_train_00000001", "size": (512, 683), "classes": 150}
_COCO = {"image": "000000000139", "size": (426, 640), "short_edges": (480, 800)}
_PANOPTIC = {"dataset": "coco_2017_val_panoptic", "classes": 133, "segments": 30, **_COCO}
_INSTANCE = {"dataset": "coco_2017_val", "classes": 80, "segments": 20, **_COCO}

_RECIPES = {
    name: _Recipe(**settings)  # type: ignore[arg-type]
    for name, settings in {
        "ade20k_semantic": {
            **{"mapper": "mask_former_semantic", "dataset": "ade20k_sem_seg_train", **_ADE20K},
            **{"segments": 17, "short_edges": (256, 1024), "crop": 512},
        },
        "ade20k_panoptic": {
            **{"mapper": "mask_former_panoptic", "dataset": "ade20k_panoptic_train", **_ADE20K},
            **{"segments": 79, "short_edges": (320, 1280), "crop": 640},
        },
        "mapillary_semantic": {
            **{"mapper": "mask_former_semantic", "dataset": "mapillary_vistas_sem_seg_train", "image": ""},
            **{"size": (2988, 3984), "classes": 65, "segments": 20, "short_edges": (1024, 4096), "crop": 1280},
        },
        "coco_panoptic": {"mapper": "detr_panoptic", **_PANOPTIC},
        "coco_panoptic_lsj": {"mapper": "coco_panoptic_lsj", **_PANOPTIC},
        "coco_instance": {"mapper": "mask_former_instance", **_INSTANCE},
        "coco_instance_lsj": {"mapper": "coco_instance_lsj", **_INSTANCE},
    }.items()
}


def map_image(recipe: str = "ade20k_semantic", root: str | None = None, seed: int = 0) -> Work:
    """Set up our mapper on one image; each call draws another crop.

    Args:
        recipe: one of the table's.
        root: of the datasets, instead of ``$DETECTRON2_DATASETS``; without the dataset, an image is made up.
        seed: of the draws.

    Returns:
        A function that makes an example and gives ``bytes_per_pixel`` of what leaves a worker.
    """
    settings = _look_up(recipe)
    record = _find_record(settings, root)
    mapper = build_mapper(_config(settings), is_train=True)
    _seed(seed)

    def measure(example: Record) -> dict[str, float]:
        return {"bytes_per_pixel": len(pickle.dumps(example)) / example["image"][0].numel()}

    sizes = measure(mapper(record))

    def work() -> dict[str, float]:
        mapper(record)
        return sizes

    return work


def decode_files(recipe: str = "ade20k_semantic", root: str | None = None) -> Work:
    """Set up the reading alone of the files that ``map_image`` reads: Pillow, to arrays."""
    settings = _look_up(recipe)
    files = _files(settings, _find_record(settings, root))

    def work() -> dict[str, float]:
        for file in files:
            with Image.open(file) as image:
                np.asarray(image)
        return {}

    return work


def resize_then_crop(recipe: str = "ade20k_semantic", root: str | None = None, seed: int = 0) -> Work:
    """Set up the definition: whole images resized, then cropped, and one boolean mask for each segment.

    Args:
        recipe: one of the table's that crops a label map.
        root: as in ``map_image``.
        seed: of the draws.
    """
    settings = _look_up(recipe)
    if settings.crop is None:
        raise InputError(f"recipe is {recipe!r}; expected one with a crop: {', '.join(_cropping())}.")
    record = _find_record(settings, root)
    crop = T.RandomCrop("absolute", (settings.crop, settings.crop))
    resize = T.ResizeShortestEdge(_short_edges(settings), 8192, "choice")
    recipe_steps = T.AugmentationList([resize, crop, ColorAugSSDTransform("RGB"), T.RandomFlip()])
    _seed(seed)

    def work() -> dict[str, float]:
        arrays = [np.asarray(Image.open(file)) for file in _files(settings, record)]
        augmented = T.AugInput(arrays[0].copy(), sem_seg=arrays[1])
        transforms = recipe_steps(augmented)
        labels = augmented.sem_seg
        if "segments_info" in record:
            labels = transforms.apply_segmentation(arrays[-1]).astype(np.int32) @ np.array([1, 256, 65536])
        masks = np.stack([labels == value for value in np.unique(labels)])
        taken = augmented.image.nbytes + augmented.sem_seg.nbytes + masks.nbytes
        return {"bytes_per_pixel": taken / labels.size}

    return work


def _cropping() -> list[str]:
    return [name for name, settings in _RECIPES.items() if settings.crop is not None]


def _look_up(recipe: str) -> _Recipe:
    if recipe not in _RECIPES:
        raise InputError(f"recipe is {recipe!r}; expected one of {', '.join(_RECIPES)}.")
    return _RECIPES[recipe]


def _seed(seed: int) -> None:
    cv2.setNumThreads(1)  # one core is measured
    random.seed(seed)
    np.random.seed(seed)


def _short_edges(settings: _Recipe) -> list[int]:
    """Eleven sizes between the two."""
    return np.linspace(*settings.short_edges, 11).astype(int).tolist()


def _config(settings: _Recipe) -> Any:
    options = [
        *("INPUT.DATASET_MAPPER_NAME", settings.mapper, "INPUT.FORMAT", "RGB"),
        *("INPUT.MIN_SIZE_TRAIN", repr(tuple(_short_edges(settings))), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice"),
        *("INPUT.MAX_SIZE_TRAIN", "8192" if settings.crop else "1333"),
        *("DATASETS.TRAIN", repr((settings.dataset,)), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(settings.classes)),
    ]
    if settings.crop:
        options += ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute", "INPUT.COLOR_AUG_SSD", "True"]
        options += ["INPUT.CROP.SIZE", repr((settings.crop, settings.crop))]
        options += ["INPUT.SIZE_DIVISIBILITY", str(settings.crop)]
    elif settings.mapper == "detr_panoptic":
        options += ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", "(384, 600)"]
    return load_config("", options)


def _files(settings: _Recipe, record: Record) -> list[str]:
    """The image, then the labels that the mapper reads of it."""
    keys = {"mask_former_semantic": ("sem_seg_file_name",), "mask_former_instance": (), "coco_instance_lsj": ()}
    labels = keys.get(settings.mapper, ("sem_seg_file_name", "pan_seg_file_name"))
    return [record[key] for key in ("file_name", *labels) if key in record]


def _find_record(settings: _Recipe, root: str | None) -> Record:
    """The dataset's own image, or one that is made up in a temporary folder where the dataset is not there."""
    if root is not None:
        os.environ["DETECTRON2_DATASETS"] = root  # Detectron2 reads it when it registers its own datasets
    register_all(root or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    try:
        records = DatasetCatalog.get(settings.dataset)
    except (OSError, InputError, AssertionError, KeyError):
        records = []
    for record in records:
        if Path(record["file_name"]).name.startswith(settings.image):
            return record
    folder = tempfile.TemporaryDirectory(prefix="maskformer_benchmark_")
    _FOLDERS.append(folder)
    return _make_up(settings, Path(folder.name))


def _make_up(settings: _Recipe, folder: Path) -> Record:
    """Write an image of smooth colours and fine noise, whose segments are tiles of a grid."""
    rng = np.random.default_rng(0)
    height, width = settings.size
    columns = -(-settings.segments // 4)
    tile_rows, tile_columns = np.arange(height) * 4 // height, np.arange(width) * columns // width
    segment = np.minimum(tile_rows[:, None] * columns + tile_columns, settings.segments - 1)
    smooth = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    pixels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (height, width, 1))
    record: Record = {"file_name": str(folder / "image.jpg"), "height": height, "width": width}
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(record["file_name"], quality=95)
    ids = (segment + 1) * 40009 % 2**24
    category = [number % settings.classes for number in range(settings.segments)]
    if "instance" in settings.mapper:
        record["annotations"] = [_annotation(segment == number, category[number]) for number in range(len(category))]
        return record
    record["sem_seg_file_name"] = str(folder / "semantic.png")
    Image.fromarray(np.array(category, np.uint8)[segment]).save(record["sem_seg_file_name"])
    if "panoptic" in settings.mapper:
        record["pan_seg_file_name"] = str(folder / "panoptic.png")
        colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        Image.fromarray(colours).save(record["pan_seg_file_name"])
        numbers = [int((number + 1) * 40009 % 2**24) for number in range(settings.segments)]
        record["segments_info"] = [{"id": i, "category_id": c} for i, c in zip(numbers, category, strict=True)]
    return record


def _annotation(mask: np.ndarray, category: int) -> Record:
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = {"bbox": rle.toBbox(encoded).tolist(), "bbox_mode": BoxMode.XYWH_ABS}
    return {"segmentation": encoded, "category_id": category, "iscrowd": 0, **box}
