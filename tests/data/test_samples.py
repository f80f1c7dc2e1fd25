"""Mappers and catalog on real annotated images, against slow computations of the test's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json, load_sem_seg, register_coco_panoptic
from detectron2.structures import polygons_to_bitmask
from PIL import Image

from maskformer.data import (
    DETRPanopticDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
    build_test_loader,
    build_train_loader,
)
from maskformer.data.datasets.registration import load_panoptic, read_categories
from maskformer.data.transforms.augmentations import (
    LabelledImage,
    build_colour_jitter,
    build_crop,
    build_flip,
    build_resize,
    crop_recipe,
)

pytestmark = pytest.mark.samples

PLAIN = {"image_format": "RGB", "num_classes": 150, "ignore_label": 255, "size_divisibility": -1}
UNCHANGED = T.AugmentationList([])


def ade20k_recipe() -> T.Augmentation:
    return crop_recipe(
        resize=build_resize([int(0.1 * scale * 512) for scale in range(5, 21)], 2048, "choice"),
        crop=build_crop("absolute", (512, 512), 0.75, 255),
        colour_jitter=build_colour_jitter("RGB"),
        flip=build_flip("horizontal"),
    )


@pytest.fixture
def ade20k(samples_root: Path) -> Path:
    return samples_root / "ADEChallengeData2016"


@pytest.fixture
def semantic_records(ade20k: Path) -> list[dict[str, Any]]:
    return [
        record
        for split in ("training", "validation")
        for record in load_sem_seg(str(ade20k / "annotations_detectron2" / split), str(ade20k / "images" / split))
    ]


@pytest.fixture
def panoptic_records(ade20k: Path) -> list[dict[str, Any]]:
    return [
        record
        for split, folder in (("train", "training"), ("val", "validation"))
        for record in load_panoptic(
            image_root=str(ade20k / "images" / folder),
            sem_seg_root=str(ade20k / "annotations_detectron2" / folder),
            panoptic_root=str(ade20k / f"ade20k_panoptic_{split}"),
            categories=read_categories("ade20k_150.json"),
            panoptic_json=str(ade20k / f"ade20k_panoptic_{split}.json"),
        )
    ]


@pytest.fixture
def coco_panoptic(samples_root: Path) -> Iterator[str]:
    """The panoptic training samples, registered with the metadata that Detectron2 gives COCO."""
    keys = ("thing_classes", "stuff_classes", "thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
    metadata = MetadataCatalog.get("coco_2017_train_panoptic")
    coco = samples_root / "coco"
    name = "samples_coco_panoptic_train"
    register_coco_panoptic(
        name,
        {key: metadata.get(key) for key in keys},
        str(coco / "train2017"),
        str(coco / "panoptic_train2017"),
        str(coco / "annotations" / "panoptic_train2017.json"),
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_semantic_targets_are_the_pixels_counted_one_by_one(semantic_records: list) -> None:
    assert len(semantic_records) == 5
    for record in semantic_records:
        example = MaskFormerSemanticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(record)
        image = Image.open(record["sem_seg_file_name"])
        counts = Counter(image.tobytes())  # one byte a pixel
        counts.pop(255, None)
        instances = example["instances"]
        assert instances.gt_classes.tolist() == sorted(counts)
        assert instances.gt_masks.tensor.flatten(1).sum(1).tolist() == [counts[c] for c in sorted(counts)]
        assert example["sem_seg"].numpy().tobytes() == image.tobytes()
        assert np.array_equal(
            example["image"].permute(1, 2, 0).numpy(), np.asarray(Image.open(record["file_name"]).convert("RGB"))
        )


def test_augmented_semantic_targets_agree_with_the_augmented_label(semantic_records: list) -> None:
    mapper = MaskFormerSemanticDatasetMapper(augmentations=ade20k_recipe(), **{**PLAIN, "size_divisibility": 512})
    for record in semantic_records * 2:
        example = mapper(record)
        assert example["image"].shape == (3, 512, 512) and example["sem_seg"].shape == (512, 512)
        counts = Counter(example["sem_seg"].flatten().tolist())
        counts.pop(255, None)
        instances = example["instances"]
        assert instances.image_size == (512, 512)
        assert instances.gt_classes.tolist() == sorted(counts)
        assert instances.gt_masks.tensor.flatten(1).sum(1).tolist() == [counts[c] for c in sorted(counts)]


def test_panoptic_targets_are_the_pixels_counted_one_by_one(panoptic_records: list) -> None:
    assert sum(len(record["segments_info"]) for record in panoptic_records) == 131
    for record in panoptic_records:
        example = MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)(record)
        colours = Image.open(record["pan_seg_file_name"]).tobytes()
        counts = Counter(zip(colours[0::3], colours[1::3], colours[2::3], strict=True))
        expected = [
            counts[segment["id"] % 256, segment["id"] // 256 % 256, segment["id"] // 65536]
            for segment in record["segments_info"]
        ]
        instances = example["instances"]
        assert instances.gt_classes.tolist() == [segment["category_id"] for segment in record["segments_info"]]
        assert instances.gt_masks.tensor.flatten(1).sum(1).tolist() == expected
        assert expected == [segment["area"] for segment in record["segments_info"]]


def test_augmented_panoptic_targets_are_the_segments_augmented_one_by_one(panoptic_records: list) -> None:
    mapper = MaskFormerPanopticDatasetMapper(augmentations=ade20k_recipe(), **{**PLAIN, "size_divisibility": 512})
    for seed, record in enumerate(panoptic_records):
        np.random.seed(seed)
        instances = mapper(record)["instances"]

        label_map = np.asarray(Image.open(record["sem_seg_file_name"]))
        np.random.seed(seed)
        transforms = mapper.augmentations(LabelledImage(np.zeros((*label_map.shape, 3), np.uint8), label_map))
        red, green, blue = np.moveaxis(np.asarray(Image.open(record["pan_seg_file_name"]), dtype=int), 2, 0)
        labels, masks = [], []
        for segment in record["segments_info"]:
            mask = transforms.apply_segmentation((red + 256 * green + 65536 * blue == segment["id"]).astype(np.uint8))
            if mask.any():
                labels.append(segment["category_id"])
                masks.append(np.pad(mask, [(0, 512 - mask.shape[0]), (0, 512 - mask.shape[1])]))
        assert instances.gt_classes.tolist() == labels
        assert np.array_equal(instances.gt_masks.tensor.numpy(), np.array(masks, bool).reshape(-1, 512, 512))


def test_coco_panoptic_of_detectron2_is_read_with_contiguous_classes(coco_panoptic: str, samples_root: Path) -> None:
    metadata = MetadataCatalog.get(coco_panoptic)
    to_contiguous = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    content = json.loads((samples_root / "coco" / "annotations" / "panoptic_train2017.json").read_text())
    segments_of = {annotation["image_id"]: annotation["segments_info"] for annotation in content["annotations"]}
    mapper = DETRPanopticDatasetMapper(augmentations=UNCHANGED, **{**PLAIN, "num_classes": 133})
    records = DatasetCatalog.get(coco_panoptic)
    assert len(records) == 8
    for record in records:
        segments = [s for s in segments_of[record["image_id"]] if not s["iscrowd"]]
        instances = mapper(record)["instances"]
        assert instances.gt_classes.tolist() == [to_contiguous[s["category_id"]] for s in segments]
        assert instances.gt_masks.tensor.flatten(1).sum(1).tolist() == [s["area"] for s in segments]


def test_coco_crowd_is_no_instance_and_official_polygons_keep_their_area(samples_root: Path) -> None:
    coco = samples_root / "coco"
    mapper = MaskFormerInstanceDatasetMapper(augmentations=UNCHANGED, **{**PLAIN, "num_classes": 91})
    crowds = 0
    for json_name in ("instances_val2017.json", "instances_val2017_100.json"):
        for record in load_coco_json(str(coco / "annotations" / json_name), str(coco / "val2017")):
            instances = mapper(record)["instances"]
            singles = [a for a in record["annotations"] if not a["iscrowd"]]
            crowds += len(record["annotations"]) - len(singles)
            expected = [polygons_to_bitmask(a["segmentation"], record["height"], record["width"]) for a in singles]
            assert instances.gt_classes.tolist() == [a["category_id"] for a in singles]
            assert np.array_equal(instances.gt_masks.tensor.numpy(), np.array(expected))
    assert crowds == 2


def test_real_images_go_through_both_loaders(
    ade20k: Path, register_dataset: Callable, make_config: Callable[..., CfgNode]
) -> None:
    labels, images = ade20k / "annotations_detectron2" / "validation", ade20k / "images" / "validation"
    name = register_dataset(
        "samples_ade20k",
        lambda: load_sem_seg(str(labels), str(images)),
        image_root=str(images),
        sem_seg_root=str(labels),
        stuff_classes=MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes,
        ignore_label=255,
    )
    cfg = make_config("DATASETS.TRAIN", (name,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150, "INPUT.MIN_SIZE_TEST", 256)
    for batch in islice(build_train_loader(cfg), 2):
        assert all(example["instances"].gt_masks.nonempty().all() for example in batch)
    sizes = [(example["height"], example["width"]) for (example,) in build_test_loader(cfg, name)]
    assert sizes == [(512, 768), (512, 683), (364, 500)]
    assert all(min(example["image"].shape[1:]) == 256 for (example,) in build_test_loader(cfg, name))


def test_semantic_and_panoptic_labels_name_the_same_class_on_nearly_all_pixels(panoptic_records: list) -> None:
    mapper = MaskFormerPanopticDatasetMapper(augmentations=UNCHANGED, **PLAIN)
    for record in panoptic_records:
        example = mapper(record)
        class_of_segment = torch.cat([torch.tensor([255]), example["instances"].gt_classes])
        from_segments = class_of_segment[example["instances"].gt_masks.segment_map.long()]
        labelled = from_segments != 255
        assert (from_segments[labelled] == example["sem_seg"][labelled]).float().mean() > 0.98
