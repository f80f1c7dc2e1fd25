"""A user's own datasets: label maps, instances and panoptic labels, from files to targets and scores.

The picture is 4 x 6: sky over grass, and two cats. Ids in files differ from 0..K-1 in every kind.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from dataset_tests import DatasetTests
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskformer.config.own_datasets import absolute_paths, read_own_datasets
from maskformer.data import build_mapper, verify_dataset
from maskformer.data.datasets.own import register_own
from maskformer.data.files.label_values import renumber
from maskformer.data.files.reading import read_label_map
from maskformer.evaluation import build_evaluator
from maskformer.structures import InputError, LabelValues

SEGMENTS = np.array(
    [
        [10, 10, 10, 10, 10, 10],
        [10, 30, 30, 40, 40, 10],
        [20, 30, 30, 40, 40, 0],
        [20, 20, 20, 20, 20, 20],
    ]
)
CLASS_OF_SEGMENT = {10: 1, 20: 0, 30: 2, 40: 2}  # grass, sky, cat
CLASSES = np.array([[CLASS_OF_SEGMENT.get(i, 255) for i in row] for row in SEGMENTS.tolist()])
NAMES = ["grass", "sky", "cat"]
IDS = [5, 3, 9]  # of grass, sky, cat in files
VALUES = np.array([[[*IDS, 0][min(i, 3)] for i in row] for row in CLASSES.tolist()])  # 0: not labelled
BLOCKS: dict[str, dict[str, Any]] = {
    "labels": {"classes": NAMES, "ids": IDS, "ignore": 0, "train": {"images": "images", "labels": "labels"}},
    "instances": {"classes": ["cat"], "offset": 9, "train": {"images": "images", "instances": "instances.json"}},
    "panoptic": {
        "classes": NAMES,
        "ids": IDS,
        "things": ["cat"],
        "train": {"images": "images", "panoptic": "panoptic.json", "panoptic_masks": "masks"},
    },
}


def write_json(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path)
    return tmp_path


def write_files(tmp_path: Path) -> None:
    """The files of all three kinds."""
    for name in ("images", "labels", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    Image.fromarray(VALUES.astype(np.uint8)).save(tmp_path / "labels" / "a.png")
    Image.fromarray(np.stack([SEGMENTS, SEGMENTS * 0, SEGMENTS * 0], axis=2).astype(np.uint8)).save(
        tmp_path / "masks" / "a.png"
    )
    image = {"id": 7, "file_name": "a.jpg", "height": 4, "width": 6}
    categories = [{"id": i, "name": n, "isthing": int(n == "cat")} for i, n in zip(IDS, NAMES, strict=True)]
    segments = [
        {"id": i, "category_id": IDS[c], "iscrowd": 0, "area": int((i == SEGMENTS).sum())}
        for i, c in CLASS_OF_SEGMENT.items()
    ]
    panoptic = {"image_id": 7, "file_name": "a.png", "segments_info": segments}
    write_json(tmp_path / "panoptic.json", images=[image], annotations=[panoptic], categories=categories)
    cats = [annotate(number, segment == SEGMENTS) for number, segment in enumerate((30, 40), start=1)]
    write_json(tmp_path / "instances.json", images=[image], annotations=cats, categories=categories)


def annotate(number: int, mask: np.ndarray) -> dict[str, Any]:
    segmentation = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = mask_util.toBbox(segmentation).tolist()
    segmentation["counts"] = segmentation["counts"].decode()
    shape = {"segmentation": segmentation, "bbox": box, "area": int(mask.sum())}
    return {"id": number, "image_id": 7, "category_id": 9, "iscrowd": 0, **shape}


@pytest.fixture(autouse=True)
def _clean_catalog() -> Iterator[None]:
    yield
    for name in {"own_train", "shapes_panoptic_train"} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def register(folder: Path, kind: str, **changes: Any) -> str:
    """Register the dataset of a kind, with keys of its block changed; returns its name."""
    block = absolute_paths({"own": {**BLOCKS[kind], **changes}}, str(folder))
    register_own(read_own_datasets(block))
    return "own_train"


def load(folder: Path, kind: str, **changes: Any) -> list[dict[str, Any]]:
    name = register(folder, kind, **changes)
    return verify_dataset(name, 1 if kind == "instances" else 3, is_train=True)


def write_and_register(root: Path) -> None:
    write_files(root)
    register_own(read_own_datasets(absolute_paths(BLOCKS, str(root))))


class TestOwn(DatasetTests):
    names = ("labels_train", "instances_train", "panoptic_train")
    write = staticmethod(write_and_register)


def edit_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- entries and metadata ---


def test_label_maps_are_paired_with_images_by_name_in_subfolders_too(folder: Path):
    for part, name in (("images", "a.PNG"), ("labels", "a.tif")):
        (folder / part / "deep").mkdir()
        Image.fromarray(np.full((1, 1), 5, np.uint8)).save(folder / part / "deep" / name)
    records = load(folder, "labels")
    assert [(r["file_name"], r["sem_seg_file_name"]) for r in records] == [
        (str(folder / "images/a.jpg"), str(folder / "labels/a.png")),
        (str(folder / "images/deep/a.PNG"), str(folder / "labels/deep/a.tif")),
    ]
    assert records[0]["label_values"] == LabelValues((5, 3, 9), (0,))


def test_instances_have_contiguous_categories(folder: Path):
    (record,) = load(folder, "instances")
    assert (record["file_name"], record["image_id"]) == (str(folder / "images/a.jpg"), 7)
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 0]


def test_segments_have_contiguous_categories_and_know_things(folder: Path):
    (record,) = load(folder, "panoptic")
    assert record["pan_seg_file_name"] == str(folder / "masks/a.png")
    assert (record["height"], record["width"], record["image_id"]) == (4, 6, 7)
    segments = [(s["id"], s["category_id"], s["isthing"]) for s in record["segments_info"]]
    assert segments == [(10, 1, False), (20, 0, False), (30, 2, True), (40, 2, True)]


@pytest.mark.parametrize(
    ("kind", "evaluator_type", "expected"),
    [
        ("labels", "sem_seg", {"stuff_classes": NAMES, "stuff_dataset_id_to_contiguous_id": {5: 0, 3: 1, 9: 2}}),
        ("instances", "coco", {"thing_classes": ["cat"], "thing_dataset_id_to_contiguous_id": {9: 0}}),
        (
            "panoptic",
            "coco_panoptic_seg",
            {
                "stuff_classes": NAMES,
                "thing_classes": NAMES,
                "thing_dataset_id_to_contiguous_id": {9: 2},
                "stuff_dataset_id_to_contiguous_id": {5: 0, 3: 1, 9: 2},
            },
        ),
    ],
)
def test_metadata_is_complete(folder: Path, kind: str, evaluator_type: str, expected: dict[str, Any]):
    colors = [[1, 2, 3], [4, 5, 6], [7, 8, 9]][: len(BLOCKS[kind]["classes"])]
    metadata = MetadataCatalog.get(register(folder, kind, colors=colors)).as_dict()
    assert metadata["evaluator_type"] == evaluator_type
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["thing_colors" if kind == "instances" else "stuff_colors"] == colors
    assert metadata.get("ignore_label") == (None if kind == "instances" else 255)


def test_classes_without_colours_get_different_ones(folder: Path):
    colors = MetadataCatalog.get(register(folder, "labels")).stuff_colors
    assert len({tuple(color) for color in colors}) == 3


def test_registering_twice_is_as_once_but_another_datasets_name_is_refused(folder: Path):
    register(folder, "labels")
    register(folder, "panoptic")
    assert MetadataCatalog.get("own_train").evaluator_type == "coco_panoptic_seg"
    DatasetCatalog.register("shapes_panoptic_train", list)
    block = absolute_paths({"shapes_panoptic": BLOCKS["labels"]}, str(folder))
    with pytest.raises(InputError, match=r"DATASETS\.OWN\.shapes_panoptic\.train would be named shapes_panoptic_train"):
        register_own(read_own_datasets(block))


# --- targets ---

MAPPER_OF_KIND = {
    "labels": "mask_former_semantic",
    "instances": "mask_former_instance",
    "panoptic": "mask_former_panoptic",
}
EXPECTED_TARGETS = {
    "labels": [(index, index == CLASSES) for index in range(3)],
    "instances": [(0, SEGMENTS == 30), (0, SEGMENTS == 40)],
    "panoptic": [(index, segment == SEGMENTS) for segment, index in CLASS_OF_SEGMENT.items()],
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_targets_are_the_annotated_segments(folder: Path, make_config, kind: str):
    (record,) = load(folder, kind)
    options = ("DATASETS.TRAIN", ("own_train",), "INPUT.DATASET_MAPPER_NAME", MAPPER_OF_KIND[kind])
    cfg = make_config(*options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(BLOCKS[kind]["classes"]))
    example = build_mapper(cfg, is_train=True)(record)
    labels, masks = example["instances"].gt_classes.tolist(), example["instances"].gt_masks.tensor.numpy()
    assert labels == [label for label, _ in EXPECTED_TARGETS[kind]]
    np.testing.assert_array_equal(masks, [mask for _, mask in EXPECTED_TARGETS[kind]])
    if kind == "labels":
        assert example["sem_seg"].tolist() == CLASSES.tolist()


# --- scores ---


def perfect(kind: str) -> dict[str, Any]:
    """What a model that is right says of the picture."""
    if kind == "labels":
        return {"sem_seg": torch.from_numpy(np.stack([index == CLASSES for index in range(3)])).float()}
    if kind == "panoptic":
        things = {30, 40}
        segments = [{"id": s, "category_id": c, "isthing": s in things} for s, c in CLASS_OF_SEGMENT.items()]
        return {"panoptic_seg": (torch.from_numpy(SEGMENTS.astype(np.int32)), segments)}
    masks = torch.from_numpy(np.stack([segment == SEGMENTS for segment in (30, 40)]))
    fields = {"pred_masks": masks, "scores": torch.ones(2), "pred_classes": torch.zeros(2, dtype=torch.int64)}
    return {"instances": Instances((4, 6), pred_boxes=Boxes(torch.zeros(2, 4)), **fields)}


@pytest.mark.parametrize(
    ("kind", "switch", "task", "metric"),
    [
        ("labels", "SEMANTIC_ON", "sem_seg", "mIoU"),
        ("instances", "INSTANCE_ON", "segm", "AP"),
        ("panoptic", "PANOPTIC_ON", "panoptic_seg", "PQ"),
    ],
)
def test_perfect_prediction_scores_100(
    folder: Path, make_config, tmp_path: Path, kind: str, switch: str, task: str, metric: str
):
    (record,) = load(folder, kind)
    cfg = make_config(f"MODEL.MASK_FORMER.TEST.{switch}", True)
    evaluator = build_evaluator(cfg, "own_train", str(tmp_path / "output"))
    evaluator.reset()
    example = {key: record[key] for key in ("file_name", "image_id") if key in record}
    evaluator.process([example], [perfect(kind)])
    assert evaluator.evaluate()[task][metric] == pytest.approx(100)


# --- values of label files ---


def test_label_values_become_classes_and_the_ignored_ones_the_ignore_label():
    values = LabelValues((5, 3, 300), (0, 7))
    label_map = np.array([[5, 3, 300], [0, 7, 5]], np.uint16)
    assert renumber(label_map, values, 255).tolist() == [[0, 1, 2], [255, 255, 0]]
    assert renumber(np.array([[4, 301]]), values, 255).tolist() == [[-1, -1]]


def test_one_bit_mask_of_two_classes_is_read(tmp_path: Path):
    Image.fromarray(np.array([[0, 1]], np.uint8) * 255).convert("1").save(tmp_path / "mask.png")
    values = LabelValues((0, 1), (255,))
    assert read_label_map(str(tmp_path / "mask.png"), 2, 255, values).tolist() == [[0, 1]]


def test_label_value_that_means_nothing_is_refused_with_those_that_do(write_png):
    path = write_png("label.png", [[1, 4], [0, 2]])
    with pytest.raises(InputError) as error:
        read_label_map(path, 3, 255, LabelValues((1, 2, 3), (0,)))
    for part in (path, "holds the value 4", "3 classes (1..3)", "ignored one (0)", "offset", "DATASETS.OWN"):
        assert part in str(error.value)


def test_value_that_only_after_the_offset_is_the_ignore_label_is_refused(tmp_path: Path):
    Image.fromarray(np.array([[1, 256]], np.uint16)).save(tmp_path / "label.tif")
    with pytest.raises(InputError, match="holds the value 256"):
        read_label_map(str(tmp_path / "label.tif"), 3, 255, LabelValues((1, 2, 3), (0,)))


# --- mistakes ---


@pytest.mark.parametrize(
    ("kind", "removed", "message"),
    [
        ("labels", "images", r"own\.train\.images is .*images, which is no folder"),
        ("labels", "labels", r"own\.train\.labels is .*labels, which is no folder"),
        ("instances", "images", r"own\.train\.images is .*images, which is no folder"),
        ("instances", "instances.json", r"own\.train\.instances is .*instances\.json, which is no file"),
        ("panoptic", "panoptic.json", r"own\.train\.panoptic is .*panoptic\.json, which is no file"),
        ("panoptic", "masks", r"own\.train\.panoptic_masks is .*masks, which is no folder"),
        ("instances", "images/a.jpg", r"Image .*a\.jpg does not exist but .*instances\.json names it"),
        ("panoptic", "images/a.jpg", r"Image .*a\.jpg does not exist but .*panoptic\.json names it"),
        ("labels", "labels/a.png", r"own\.train\.labels is .*labels, which holds no file of the types"),
    ],
)
def test_missing_file_or_folder_is_named_by_its_key(folder: Path, kind: str, removed: str, message: str):
    (folder / removed).rename(folder / "taken_away")
    with pytest.raises(InputError, match=message):
        load(folder, kind)


def test_image_without_label_is_named(folder: Path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "images" / "b.jpg")
    with pytest.raises(InputError, match=r"1 of 2 images of DATASETS\.OWN\.own\.train have no label, first .*b\.jpg"):
        load(folder, "labels")


def test_label_without_image_is_told_and_left_out(folder: Path, caplog: pytest.LogCaptureFixture):
    Image.fromarray(VALUES.astype(np.uint8)).save(folder / "labels" / "b.png")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("maskformer").propagate = True
        assert len(load(folder, "labels")) == 1
    assert "1 labels of DATASETS.OWN.own.train have no image" in caplog.text


def test_two_images_of_one_name_are_refused(folder: Path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "images" / "a.png")
    with pytest.raises(InputError, match=r"train\.images has both .*a\.jpg and .*a\.png"):
        load(folder, "labels")


def test_image_without_panoptic_annotation_is_named(folder: Path):
    edit_json(folder / "panoptic.json", lambda content: content["annotations"].clear())
    with pytest.raises(InputError, match=r"a\.jpg has no annotation in .*panoptic\.json"):
        load(folder, "panoptic")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("instances", {"offset": 0}, r"Category 9 is 'cat' in .*instances\.json but None in .*write ids: \[9\] there"),
        ("instances", {"classes": ["dog"]}, r"Category 9 is 'cat' in .* but 'dog' in DATASETS\.OWN\.own .*grass, sky"),
        ("panoptic", {"ids": [3, 5, 9]}, r"Category 3 is 'sky' in .* but 'grass' in .*write ids: \[5, 3, 9\] there"),
        ("panoptic", {"things": ["cat", "sky"]}, r"'sky' has isthing 0 in .* but is in DATASETS\.OWN\.own\.things"),
        ("panoptic", {"things": []}, r"'cat' has isthing 1 in .* but is not in DATASETS\.OWN\.own\.things"),
    ],
)
def test_json_that_means_other_classes_is_refused_with_the_remedy(folder: Path, kind: str, changes: Any, message: str):
    with pytest.raises(InputError, match=message):
        load(folder, kind, **changes)


def test_broken_json_is_named(folder: Path):
    (folder / "instances.json").write_text("{")
    with pytest.raises(InputError, match=r"train\.instances is .*instances\.json, which is no JSON"):
        load(folder, "instances")
    (folder / "instances.json").write_text("[]")
    with pytest.raises(InputError, match=r"instances\.json .* has no annotations; expected COCO's format"):
        load(folder, "instances")
