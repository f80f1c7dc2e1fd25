"""Cityscapes, fine annotations, under the names that Detectron2 gave it.

``cityscapes_fine_{sem_seg,instance_seg}_{train,val,test}`` and ``cityscapes_fine_panoptic_{train,val}``. Detectron2
registers them too, but its loaders need shapely and, in newer versions, a module that is not public; ``register_all``
puts these in their place. They read the same files and give the same entries, with two differences: instances come
from ``_instanceIds.png``, exact to the pixel, and no JSON of polygons is read.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
from detectron2.structures import BoxMode

from maskformer.structures import InputError

from ..files.json_files import join_inside, read_panoptic_json
from ..files.masks import encode_segments
from ..files.reading import read_class_map
from .registration import (
    contiguous_segments,
    instance_metadata,
    panoptic_metadata,
    read_categories,
    register,
    semantic_metadata,
)

Record = dict[str, Any]

_CATEGORIES = "cityscapes_19.json"
_IMAGE_END = "_leftImg8bit.png"
_INSTANCES_PER_CLASS = 1000  # an instance id is label id x 1000 + number; below 1000 it is a group, or no thing


def register_cityscapes(root: str | Path) -> None:
    """Register the datasets as found under ``root/cityscapes``; files are looked for when one is loaded."""
    folder = Path(root) / "cityscapes"
    categories = read_categories(_CATEGORIES)
    for split in ("train", "val", "test"):
        paths = {"image_dir": str(folder / "leftImg8bit" / split), "gt_dir": str(folder / "gtFine" / split)}
        register(
            f"cityscapes_fine_sem_seg_{split}",
            partial(_load_semantic, **paths),
            **paths,
            **semantic_metadata(categories),
            evaluator_type="cityscapes_sem_seg",
            ignore_label=255,
        )
        register(
            f"cityscapes_fine_instance_seg_{split}",
            partial(_load_instances, **paths),
            **paths,
            **instance_metadata(categories),
            evaluator_type="cityscapes_instance",
        )
        if split == "test":  # whose labels are not public
            continue
        paths = {
            "image_root": paths["image_dir"],
            "gt_dir": paths["gt_dir"],
            "panoptic_root": str(folder / "gtFine" / f"cityscapes_panoptic_{split}"),
            "panoptic_json": str(folder / "gtFine" / f"cityscapes_panoptic_{split}.json"),
        }
        register(
            f"cityscapes_fine_panoptic_{split}",
            partial(_load_panoptic, **paths),
            **paths,
            **panoptic_metadata(categories),
            evaluator_type="cityscapes_panoptic_seg",
            ignore_label=255,
            label_divisor=1000,
        )


def _load_semantic(*, image_dir: str, gt_dir: str) -> list[Record]:
    """Read the names of the images and of their ``_labelTrainIds.png``; both folders have one of each city."""
    return [
        {**_image_entry(image), "sem_seg_file_name": _label_file(image, gt_dir, "labelTrainIds")}
        for image in _find_images(image_dir)
    ]


def _load_instances(*, image_dir: str, gt_dir: str) -> list[Record]:
    """Read the images and the instances of ``_instanceIds.png``; a group of things is a crowd."""
    images = _find_images(image_dir)
    labels = [_label_file(image, gt_dir, "instanceIds") for image in images]
    class_of_label = instance_metadata(read_categories(_CATEGORIES))["thing_dataset_id_to_contiguous_id"]
    with ThreadPoolExecutor() as pool:  # decoding and searching release Python's lock
        sizes_and_annotations = list(pool.map(partial(_read_instances, class_of_label=class_of_label), labels))
    return [
        {**_image_entry(image), "height": size[0], "width": size[1], "annotations": annotations}
        for image, (size, annotations) in zip(images, sizes_and_annotations, strict=True)
    ]


def _read_instances(file_name: str, class_of_label: dict[int, int]) -> tuple[tuple[int, int], list[Record]]:
    """Read the (height, width) and Detectron2's ``annotations`` of one ``_instanceIds.png``, of 16 bits.

    Args:
        file_name: of the file.
        class_of_label: label id -> contiguous class, for the things that are evaluated.
    """
    id_map = read_class_map(file_name)
    ids = np.flatnonzero(np.bincount(id_map.ravel()))
    class_of_id = {int(i): class_of_label.get(int(i // _INSTANCES_PER_CLASS or i)) for i in ids}
    masks = encode_segments(id_map, [i for i, label in class_of_id.items() if label is not None])
    height, width = id_map.shape
    return (height, width), [
        {
            "category_id": class_of_id[i],
            "iscrowd": int(i < _INSTANCES_PER_CLASS),
            "bbox": rle.toBbox(mask).tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "segmentation": mask,
        }
        for i, mask in masks.items()
    ]


def _load_panoptic(*, image_root: str, gt_dir: str, panoptic_root: str, panoptic_json: str) -> list[Record]:
    """Read the panoptic JSON that cityscapesScripts makes, whose category ids are label ids."""
    images = {_image_entry(image)["image_id"]: image for image in _find_images(image_root)}
    categories, hint = read_categories(_CATEGORIES), ", without --use-train-id"
    records = []
    for annotation in read_panoptic_json(panoptic_json, with_images=False)["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            raise InputError(
                f"{panoptic_json} names the image {annotation['image_id']}; expected its file in {image_root}."
            )
        records.append(
            {
                **_image_entry(image),
                "sem_seg_file_name": _label_file(image, gt_dir, "labelTrainIds"),
                "pan_seg_file_name": join_inside(panoptic_root, annotation["file_name"], panoptic_json),
                "segments_info": contiguous_segments(annotation, categories, panoptic_json, hint),
            }
        )
    return records


def _find_images(image_dir: str) -> list[Path]:
    images = sorted(Path(image_dir).glob(f"*/*{_IMAGE_END}"))
    if not images:
        raise InputError(
            f"{image_dir} has no image *{_IMAGE_END} in a folder of its city; set DETECTRON2_DATASETS to the folder "
            "that holds cityscapes/ (datasets/README.md)."
        )
    return images


def _image_entry(image: Path) -> Record:
    return {"file_name": str(image), "image_id": image.name.removesuffix(_IMAGE_END)}


def _label_file(image: Path, gt_dir: str, kind: str) -> str:
    name = image.name.removesuffix(_IMAGE_END)
    label = Path(gt_dir, image.parent.name, f"{name}_gtFine_{kind}.png")
    if not label.is_file():
        advice = (
            "make it with `python -m cityscapesscripts.preparation.createTrainIdLabelImgs`"
            if kind == "labelTrainIds"
            else "take the archive gtFine_trainvaltest.zip"
        )
        raise InputError(f"Image {image} has no label {label}; {advice} (datasets/README.md).")
    return str(label)
