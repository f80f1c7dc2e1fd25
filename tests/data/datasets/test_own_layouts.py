"""Datasets in the layouts in which other programs and public datasets come, through configuration, mapper and scores.

The picture is 4 x 6: grass, a path, and two stones that touch nothing. Each layout says where it is documented.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskformer.config import load_config
from maskformer.config.own_datasets import read_own_datasets
from maskformer.data import build_mapper, build_train_loader, verify_dataset
from maskformer.data.datasets.own import register_own
from maskformer.evaluation import build_evaluator
from maskformer.structures import BadImageError, InputError

CLASSES = np.array([[0, 0, 0, 0, 0, 0], [0, 2, 0, 0, 2, 0], [0, 2, 0, 0, 2, 1], [1, 1, 1, 1, 1, 1]], np.uint8)
STONES = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 2, 0], [0, 1, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0]], np.uint8)
COLORS = [[128, 64, 128], [0, 0, 192], [64, 192, 0]]
COLOURED = np.array(COLORS, np.uint8)[CLASSES]
PICTURE = np.full((4, 6, 3), 90, np.uint8)
SCENE = {"classes": ["grass", "path", "stone"]}

LoadOwn = Callable[..., list[dict[str, Any]]]


def save(path: Path, pixels: np.ndarray = PICTURE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_text(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def pack(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))


def read_config(folder: Path, block: dict[str, Any], *options: str) -> CfgNode:
    """The configuration of a model for the dataset, whose splits are named scene_SPLIT."""
    split = next(name for name, value in block.items() if isinstance(value, dict))
    names = {"TRAIN": [f"scene_{split}"], "TEST": [f"scene_{split}"]}
    inputs = {"FORMAT": "RGB", "MIN_SIZE_TRAIN": [0], "MIN_SIZE_TRAIN_SAMPLING": "choice", "RANDOM_FLIP": "none"}
    content = {"DATASETS": {"OWN": {"scene": block}, **names}, "INPUT": inputs, "DATALOADER": {"NUM_WORKERS": 0}}
    (folder / "scene.yaml").write_text(yaml.safe_dump(content))
    return load_config(str(folder / "scene.yaml"), options)


@pytest.fixture
def load_own(tmp_path: Path) -> Iterator[LoadOwn]:
    """A function of a block's keys that gives the entries of its first split, after all checks before a training."""

    def load(**block: Any) -> list[dict[str, Any]]:
        cfg = read_config(tmp_path, block)
        register_own(read_own_datasets(cfg.DATASETS.OWN))
        return verify_dataset(cfg.DATASETS.TRAIN[0], cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, is_train=True)

    yield load
    for name in [name for name in DatasetCatalog.list() if name.startswith("scene_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def example_of(folder: Path, record: dict[str, Any], mapper: str = "mask_former_semantic") -> dict[str, Any]:
    """What a training gets of an entry, by the configuration that was read last."""
    cfg = load_config(str(folder / "scene.yaml"), ["INPUT.DATASET_MAPPER_NAME", mapper])
    return build_mapper(cfg, is_train=True)(record)


def names_of(records: list[dict[str, Any]], key: str = "file_name") -> list[str]:
    return [Path(record[key]).name for record in records]


# --- suffixes ---


def test_roboflow_semantic_export_has_masks_beside_images(tmp_path: Path, load_own: LoadOwn):
    # Roboflow's "Semantic Segmentation Masks": NAME.rf.HASH.jpg, NAME.rf.HASH_mask.png and _classes.csv in each split.
    save(tmp_path / "train/a_jpg.rf.1a2b.jpg")
    save(tmp_path / "train/a_jpg.rf.1a2b_mask.png", CLASSES)
    write_text(tmp_path / "train/_classes.csv", "Pixel Value, Class\n0, grass\n")
    (record,) = load_own(**SCENE, label_suffix="_mask.png", train={"images": "train", "labels": "train"})
    assert names_of([record]) == ["a_jpg.rf.1a2b.jpg"]
    assert example_of(tmp_path, record)["sem_seg"].tolist() == CLASSES.tolist()


def test_cityscapes_names_have_a_suffix_on_both_sides(tmp_path: Path, load_own: LoadOwn):
    # cityscapesscripts/README.md: leftImg8bit/SPLIT/CITY/CITY_SEQ_FRAME_leftImg8bit.png, gtFine/..._gtFine_labelIds.png
    for ending in ("color", "instanceIds", "labelIds"):
        save(tmp_path / f"gtFine/train/ulm/ulm_0_1_gtFine_{ending}.png", CLASSES)
    save(tmp_path / "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png")
    folders = {"images": "leftImg8bit/train", "labels": "gtFine/train"}
    suffixes = {"image_suffix": "_leftImg8bit.png", "label_suffix": "_gtFine_labelIds.png"}
    (record,) = load_own(**SCENE, train={**folders, **suffixes})
    assert names_of([record], "sem_seg_file_name") == ["ulm_0_1_gtFine_labelIds.png"]
    with pytest.raises(InputError, match=r"image_suffix: _leftImg8bit\.png and label_suffix: _gtFine_\w+\.png"):
        load_own(**SCENE, train=folders)


@pytest.mark.parametrize("suffix", ["_mask.gif", "_MASK.gif", "_mask"])
def test_carvana_masks_are_gifs(tmp_path: Path, load_own: LoadOwn, suffix: str):
    # Carvana: train/ID_01.jpg and train_masks/ID_01_mask.gif, of 0 and 1.
    save(tmp_path / "train/0c_01.jpg")
    save(tmp_path / "train_masks/0c_01_mask.gif", CLASSES // 2)
    (record,) = load_own(
        classes=["no", "car"], train={"images": "train", "labels": "train_masks", "label_suffix": suffix}
    )
    assert example_of(tmp_path, record)["sem_seg"].tolist() == (CLASSES // 2).tolist()


def test_photos_and_png_labels_of_one_name_share_a_folder(tmp_path: Path, load_own: LoadOwn):
    for name in ("a b", "ü.1"):
        save(tmp_path / f"data/{name}.JPG")
        save(tmp_path / f"data/{name}.png", CLASSES)
    records = load_own(**SCENE, images="data", labels="data", train={})
    assert names_of(records) == ["a b.JPG", "ü.1.JPG"]
    assert names_of(records, "sem_seg_file_name") == ["a b.png", "ü.1.png"]


def test_pngs_of_one_folder_are_never_their_own_labels(tmp_path: Path, load_own: LoadOwn):
    save(tmp_path / "data/a.png")
    save(tmp_path / "data/a_L.png", CLASSES)
    with pytest.raises(InputError, match=r"label_suffix: _L\.png"):
        load_own(**SCENE, images="data", labels="data", train={})


def test_labels_below_the_images_are_no_images(tmp_path: Path, load_own: LoadOwn):
    save(tmp_path / "data/deep/a.png")
    save(tmp_path / "data/masks/deep/a.png", CLASSES)
    assert names_of(load_own(**SCENE, train={"images": "data", "labels": "data/masks"})) == ["a.png"]


def test_star_stands_for_the_folder_of_each_scene(tmp_path: Path, load_own: LoadOwn):
    for scene in ("one", "two"):
        save(tmp_path / f"data/{scene}/rgb/0.png")
        save(tmp_path / f"data/{scene}/seg/0.png", CLASSES)
    records = load_own(**SCENE, train={"images": "data/*/rgb", "labels": "data/*/seg"})
    pairs = [(Path(r["file_name"]).parts[-3], Path(r["sem_seg_file_name"]).parts[-3]) for r in records]
    assert pairs == [("one", "one"), ("two", "two")]


# --- lists ---


def voc(folder: Path) -> dict[str, str]:
    for name in ("2007_000032", "2007_000039"):
        save(folder / f"VOC2012/JPEGImages/{name}.jpg")
        save(folder / f"VOC2012/SegmentationClass/{name}.png", CLASSES)
    save(folder / "VOC2012/JPEGImages/2007_000001.jpg")  # most have no segmentation
    return {"images": "VOC2012/JPEGImages", "labels": "VOC2012/SegmentationClass"}


@pytest.mark.parametrize(
    "lines",
    [
        "2007_000039\n2007_000032\n",  # VOCdevkit's ImageSets/Segmentation/train.txt
        "\ufeff# train\r\n\r\n2007_000039.jpg\r\n  JPEGImages\\2007_000032.jpg \r\n",
        "2007_000039".encode("utf-16") + "\r\n2007_000032".encode("utf-16-le"),  # Windows' PowerShell
        # DeepLab's and PSPNet's lists of the augmented VOC, and CamVid's by SegNet, with paths of somebody else
        "/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png\n"
        "/SegNet/VOC/JPEGImages/2007_000032.jpg\t/SegNet/VOC/SegmentationClass/2007_000032.png",
        "JPEGImages/2007_000039.jpg,SegmentationClass/2007_000039.png\n2007_000032.jpg;2007_000032.png\n",
        "2007_000039 1 2 1\n2007_000032 0\n",  # as Oxford Pets' trainval.txt, with numbers of other tasks
    ],
)
def test_list_names_the_images_of_a_split_in_every_form(tmp_path: Path, load_own: LoadOwn, lines: str | bytes):
    write_text(tmp_path / "lists/train.txt", lines)
    records = load_own(**SCENE, **voc(tmp_path), train={"list": "lists/train.txt"}, val={"list": "lists/val.txt"})
    assert names_of(records) == ["2007_000039.jpg", "2007_000032.jpg"]
    assert names_of(records, "sem_seg_file_name") == ["2007_000039.png", "2007_000032.png"]


def test_pairs_of_a_list_need_no_common_name(tmp_path: Path, load_own: LoadOwn):
    save(tmp_path / "root/in/a b.png")
    save(tmp_path / "root/out/mask of a b.png", CLASSES)
    write_text(tmp_path / "train.txt", "in/a b.png out/mask of a b.png\n")
    (record,) = load_own(**SCENE, images="root", labels="root", train={"list": "train.txt"})
    assert record["sem_seg_file_name"].endswith("root/out/mask of a b.png")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("2007_000032\n2008_000001\n", r"Line 2 of .*train\.txt .*'2008_000001'.* such as '2007_0000"),
        ("2007_000001\n", r"1 of 1 images of .*scene\.train have no label, first .*2007_000001\.jpg"),
        ("a/2007_000032.jpg b/2008_1.png\n", r"train\.list\) names the label 'b/2008_1\.png', which is not in .*Class"),
        ("# nothing\n\n", r"train\.txt, which names no image"),
        (b"\xff\xfe\x00", r"list is .*train\.txt, which cannot be read as text"),
    ],
)
def test_list_of_what_is_not_there_is_refused(tmp_path: Path, load_own: LoadOwn, lines: str | bytes, message: str):
    write_text(tmp_path / "train.txt", lines)
    with pytest.raises(InputError, match=message):
        load_own(**SCENE, **voc(tmp_path), train={"list": "train.txt"})


def test_pair_below_one_folder_is_told_apart_though_both_have_one_name(tmp_path: Path, load_own: LoadOwn):
    save(tmp_path / "CamVid/train/1.png")
    save(tmp_path / "CamVid/trainannot/1.png", CLASSES)
    write_text(tmp_path / "train.txt", "/SegNet/CamVid/train/1.png /SegNet/CamVid/trainannot/1.png\n")
    (record,) = load_own(**SCENE, images="CamVid", labels="CamVid", train={"list": "train.txt"})
    assert example_of(tmp_path, record)["sem_seg"].tolist() == CLASSES.tolist()
    assert record["file_name"].endswith("CamVid/train/1.png")


def test_image_is_never_the_label_that_a_list_names(tmp_path: Path, load_own: LoadOwn):
    save(tmp_path / "train/1.png")
    write_text(tmp_path / "train.txt", "/SegNet/CamVid/train/1.png /SegNet/CamVid/trainannot/1.png\n")
    with pytest.raises(InputError, match=r"names the label '/SegNet/CamVid/trainannot/1\.png', which is not in"):
        load_own(**SCENE, images="train", labels="train", train={"list": "train.txt"})


def test_image_that_a_list_names_twice_counts_once(tmp_path: Path, load_own: LoadOwn):
    write_text(tmp_path / "train.txt", "2007_000032\n2007_000032.jpg\n")
    assert len(load_own(**SCENE, **voc(tmp_path), train={"list": "train.txt"})) == 1


# --- one mask file per object ---


def pennfudan(folder: Path) -> dict[str, Any]:
    # PennFudanPed/readme.txt: PNGImages/FudanPed00001.png, PedMasks/FudanPed00001_mask.png, whose values count people.
    save(folder / "PNGImages/FudanPed00001.png")
    save(folder / "PedMasks/FudanPed00001_mask.png", STONES)
    return {"images": "PNGImages", "objects": "PedMasks", "label_suffix": "_mask.png"}


def nuclei(folder: Path) -> dict[str, Any]:
    # Data Science Bowl 2018: stage1_train/ID/images/ID.png (RGBA) and ID/masks/HASH.png, a file of 0 and 255 each.
    save(folder / "stage1_train/00ae/images/00ae.png", np.dstack([PICTURE, PICTURE[..., 0]]))
    for number in (1, 2):
        save(folder / f"stage1_train/00ae/masks/{number}f.png", (number == STONES).astype(np.uint8) * 255)
    return {"images": "stage1_train/*/images", "objects": "stage1_train/*/masks"}


def folders_of_masks(folder: Path) -> dict[str, Any]:
    save(folder / "images/a.jpg")
    for number in (1, 2):
        mask = (number == STONES).astype(np.uint8) * 255
        save(folder / f"masks/a/{number}.png", np.dstack([mask] * 3))
    return {"images": "images", "objects": "masks"}


def busi(folder: Path) -> dict[str, Any]:
    # Breast Ultrasound Images: "benign (1).png", "benign (1)_mask.png" and, of a second tumour, "..._mask_1.png".
    save(folder / "benign/benign (1).png")
    save(folder / "benign/benign (1)_mask.png", STONES == 1)
    save(folder / "benign/benign (1)_mask_1.png", STONES == 2)
    return {"images": "benign", "objects": "benign", "label_suffix": "_mask*.png"}


LAYOUTS = [pennfudan, nuclei, folders_of_masks, busi]


@pytest.mark.parametrize("write", LAYOUTS)
def test_masks_of_single_objects_are_targets_and_truth(tmp_path: Path, load_own: LoadOwn, write: Any):
    (record,) = load_own(classes=["stone"], train=write(tmp_path))
    instances = example_of(tmp_path, record, "mask_former_instance")["instances"]
    assert instances.gt_classes.tolist() == [0, 0]
    np.testing.assert_array_equal(instances.gt_masks.tensor, [STONES == 1, STONES == 2])
    cfg = load_config(str(tmp_path / "scene.yaml"), ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True"])
    evaluator = build_evaluator(cfg, "scene_train")
    found = Instances((4, 6), pred_boxes=Boxes(torch.zeros(2, 4)), scores=torch.ones(2))
    found.pred_masks, found.pred_classes = torch.tensor(np.stack([STONES == 1, STONES == 2])), torch.zeros(2).long()
    evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)


def test_masks_are_read_by_the_worker_not_before(tmp_path: Path, load_own: LoadOwn):
    block = pennfudan(tmp_path)
    (tmp_path / "PedMasks/FudanPed00001_mask.png").write_bytes(b"broken")
    (record,) = load_own(classes=["stone"], train=block)
    with pytest.raises(BadImageError, match=r"FudanPed00001_mask\.png"):
        example_of(tmp_path, record, "mask_former_instance")


def test_several_objects_in_one_of_several_files_are_refused(tmp_path: Path, load_own: LoadOwn):
    block = nuclei(tmp_path)
    save(tmp_path / "stage1_train/00ae/masks/3f.png", STONES)
    (record,) = load_own(classes=["stone"], train=block)
    with pytest.raises(BadImageError, match=r"3f\.png holds the values 1, 2; expected 0 and one other"):
        example_of(tmp_path, record, "mask_former_instance")


def test_mask_of_another_image_is_not_taken_for_that_of_the_only_one(tmp_path: Path, load_own: LoadOwn):
    for name in ("a", "b"):
        save(tmp_path / f"masks/sub/{name}_mask.png", STONES)
    save(tmp_path / "images/sub/a.png")
    (record,) = load_own(classes=["x"], train={"images": "images", "objects": "masks", "label_suffix": "_mask.png"})
    assert len(record["annotations"]) == 2


def test_image_without_masks_is_refused_with_what_is_there(tmp_path: Path, load_own: LoadOwn):
    block = pennfudan(tmp_path)
    del block["label_suffix"]
    with pytest.raises(InputError, match=r"FudanPed00001_mask\.png: add label_suffix: _mask\.png"):
        load_own(classes=["person"], train=block)


# --- colours ---


def coloured(folder: Path, pixels: np.ndarray = COLOURED) -> dict[str, Any]:
    # CamVid's LabeledApproved_full: 0001TP_006690_L.png, RGB, with the colours of label_colors.txt.
    save(folder / "701/0001TP_006690.png")
    save(folder / "labels/0001TP_006690_L.png", pixels)
    return {"images": "701", "labels": "labels", "label_suffix": "_L.png"}


def test_colours_become_classes_and_named_ones_are_ignored(tmp_path: Path, load_own: LoadOwn):
    pixels = COLOURED.copy()
    pixels[0, 0] = 0, 0, 0
    (record,) = load_own(**SCENE, colors=COLORS, ignore=[[0, 0, 0]], train=coloured(tmp_path, pixels))
    expected = CLASSES.copy()
    expected[0, 0] = 255
    assert example_of(tmp_path, record)["sem_seg"].tolist() == expected.tolist()
    cfg = load_config(str(tmp_path / "scene.yaml"))
    evaluator = build_evaluator(cfg, "scene_train")
    evaluator.process([record], [{"sem_seg": torch.from_numpy(CLASSES.astype(np.int64))}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


def test_colour_of_no_class_is_refused_with_colour_file_and_count(tmp_path: Path, load_own: LoadOwn):
    pixels = COLOURED.copy()
    pixels[0, :3], pixels[0, 4] = (128, 64, 127), (1, 2, 3)
    (record,) = load_own(**SCENE, colors=COLORS, train=coloured(tmp_path, pixels))
    with pytest.raises(BadImageError, match=r"0001TP_006690_L\.png holds the colour \[128, 64, 127\] in 3 pixels"):
        example_of(tmp_path, record)


def test_colours_without_colors_are_refused_with_the_key(tmp_path: Path, load_own: LoadOwn):
    (record,) = load_own(**SCENE, train=coloured(tmp_path))
    with pytest.raises(BadImageError, match=r"_L\.png .*colors in DATASETS\.OWN"):
        example_of(tmp_path, record)


@pytest.mark.parametrize("by_palette", [False, True])
def test_palette_means_indices_unless_it_is_said_to_mean_colours(tmp_path: Path, load_own: LoadOwn, by_palette: bool):
    block = coloured(tmp_path)
    image = Image.fromarray(np.array([2, 0, 1], np.uint8)[CLASSES])
    image.putpalette([part for index in (1, 2, 0) for part in COLORS[index]])
    image.save(tmp_path / "labels/0001TP_006690_L.png")
    said = {"palette_colors": True} if by_palette else {}
    (record,) = load_own(**SCENE, colors=COLORS, **said, train=block)
    expected = CLASSES if by_palette else np.array([2, 0, 1])[CLASSES]
    assert example_of(tmp_path, record)["sem_seg"].tolist() == expected.tolist()


# --- archives ---


def test_archive_is_trained_from_by_every_worker_without_unpacking(tmp_path: Path, load_own: LoadOwn):
    for index in range(6):
        save(tmp_path / f"files/data/images/{index}.png", PICTURE + index)
        save(tmp_path / f"files/data/labels/{index}.png", CLASSES)
    write_text(tmp_path / "files/__MACOSX/data/images/._0.png", b"resource fork")
    pack(tmp_path / "files", tmp_path / "My data.ZIP")
    block = {**SCENE, "train": {"images": "My data.ZIP/data/images", "labels": "My data.ZIP/data/labels"}}
    records = load_own(**block)
    assert len(records) == 6
    assert read_image(records[1]["file_name"], "RGB").max() == 91  # by Detectron2's own mappers too
    options = ["DATALOADER.NUM_WORKERS", "2", "SOLVER.IMS_PER_BATCH", "3", "SEED", "1"]
    loader = iter(build_train_loader(read_config(tmp_path, block, *options)))
    examples = [example for _ in range(4) for example in next(loader)]
    assert {int(example["image"][0, 0, 0]) for example in examples} == set(range(90, 96))
    for example in examples:
        assert int(example["image"][0, 0, 0]) == 90 + int(Path(example["file_name"]).stem)
        assert example["sem_seg"].tolist() == CLASSES.tolist()


def test_json_masks_and_lists_are_read_from_an_archive_too(tmp_path: Path, load_own: LoadOwn):
    write_coco(tmp_path / "files/train", "a.jpg")
    write_text(tmp_path / "files/train.txt", "a\n")
    pennfudan(tmp_path / "files")
    pack(tmp_path / "files", tmp_path / "x.zip")
    coco = {"images": "x.zip/train", "instances": "x.zip/train/_annotations.coco.json", "list": "x.zip/train.txt"}
    (record,) = load_own(train=coco)
    assert len(example_of(tmp_path, record, "mask_former_instance")["instances"]) == 2
    cfg = load_config(str(tmp_path / "scene.yaml"), ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True"])
    build_evaluator(cfg, "scene_train")
    split = {"images": "x.zip/PNGImages", "objects": "x.zip/PedMasks", "label_suffix": "_mask.png"}
    (record,) = load_own(classes=["person"], train=split)
    assert len(example_of(tmp_path, record, "mask_former_instance")["instances"]) == 2


@pytest.mark.parametrize(
    ("member", "folder", "message"),
    [
        ("images/../../a.png", "images", r"x\.zip holds the name 'images/\.\./\.\./a\.png', which leads out of it"),
        ("/etc/a.png", "etc", r"x\.zip holds the name '/etc/a\.png', which leads out of it"),
        ("data/images/a.png", "images", r"x\.zip/images, which holds no file.* data/images"),
    ],
)
def test_archive_with_other_names_is_refused(tmp_path: Path, load_own: LoadOwn, member: str, folder: str, message: str):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(save(tmp_path / "a.png"), member)
        archive.filelist[-1].filename = member
    with pytest.raises(InputError, match=message):
        load_own(**SCENE, train={"images": f"x.zip/{folder}", "labels": f"x.zip/{folder}s"})


def test_damaged_archives_and_members_are_named(tmp_path: Path, load_own: LoadOwn, monkeypatch: pytest.MonkeyPatch):
    split = {"images": "x.zip/images", "labels": "x.zip/labels"}
    with pytest.raises(InputError, match=r"x\.zip/images is in no archive that exists"):
        load_own(**SCENE, train=split)
    (tmp_path / "x.zip").write_bytes(b"PK, but no archive")
    with pytest.raises(InputError, match=r"x\.zip is no zip that can be read"):
        load_own(**SCENE, train=split)
    save(tmp_path / "files/images/a.png")
    save(tmp_path / "files/labels/a.png", CLASSES)
    pack(tmp_path / "files", tmp_path / "x.zip")
    (record,) = load_own(**SCENE, train=split)
    monkeypatch.setattr("maskformer.data.files.archives._MOST_BYTES", 10)
    with pytest.raises(BadImageError, match=r"images/a\.png cannot be read: it unpacks to \d+ bytes, 10 are allowed"):
        example_of(tmp_path, record)


# --- COCO ---


def coco_content(file_name: str, **changes: Any) -> dict[str, Any]:
    """Roboflow's "COCO Segmentation": a group of all classes comes first, ids of images start at 0."""
    polygons = [[[1, 1, 2, 1, 2, 3, 1, 3]], [[4, 1, 5, 1, 5, 3, 4, 3]]]
    annotations = [
        {
            "id": i,
            "image_id": 0,
            "category_id": 1,
            "bbox": [1, 1, 1, 2],
            "area": 2,
            "segmentation": polygon,
            "iscrowd": 0,
        }
        for i, polygon in enumerate(polygons)
    ]
    return {
        "info": {"year": "2026", "contributor": "", "description": 'Exported, with "categories": [1]'},
        "categories": [
            {"id": 0, "name": "stones", "supercategory": "none"},
            {"id": 1, "name": "stone", "supercategory": "stones"},
            {"id": 2, "name": "boulder", "supercategory": "stones"},
        ],
        "images": [{"id": 0, "license": 1, "file_name": file_name, "height": 4, "width": 6}],
        "annotations": annotations,
        **changes,
    }


def write_coco(folder: Path, file_name: str, json_name: str = "_annotations.coco.json", **changes: Any) -> None:
    save(folder / file_name)
    write_text(folder / json_name, json.dumps(coco_content(file_name, **changes)))


def test_roboflow_export_needs_no_classes_and_its_group_is_left_out(tmp_path: Path, load_own: LoadOwn):
    write_coco(tmp_path / "train", "a_jpg.rf.1.jpg")
    block = {"train": {"images": "train", "instances": "train/_annotations.coco.json"}}
    (record,) = load_own(**block)
    cfg = load_config(str(tmp_path / "scene.yaml"))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    assert MetadataCatalog.get("scene_train").thing_classes == ["stone", "boulder"]
    instances = example_of(tmp_path, record, "mask_former_instance")["instances"]
    assert instances.gt_classes.tolist() == [0, 0]
    np.testing.assert_array_equal(instances.gt_masks.tensor, [STONES == 1, STONES == 2])


def test_category_that_an_annotation_has_is_never_left_out(tmp_path: Path):
    annotation = {**coco_content("a.jpg")["annotations"][0], "category_id": 0}
    write_coco(tmp_path / "train", "a.jpg", annotations=[annotation])
    cfg = read_config(tmp_path, {"train": {"images": "train", "instances": "train/_annotations.coco.json"}})
    assert cfg.DATASETS.OWN.scene.classes == ["stones", "stone", "boulder"]


def test_saved_configuration_knows_its_classes_without_the_json(tmp_path: Path):
    write_coco(tmp_path / "train", "a.jpg")
    cfg = read_config(tmp_path, {"train": {"images": "train", "instances": "train/_annotations.coco.json"}})
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    (tmp_path / "train/_annotations.coco.json").unlink()
    saved = load_config(str(tmp_path / "saved.yaml"))
    assert read_own_datasets(saved.DATASETS.OWN) == read_own_datasets(cfg.DATASETS.OWN)
    assert read_own_datasets(saved.DATASETS.OWN)[0].values.of_classes == (1, 2)
    with pytest.raises(InputError, match=r"train\.instances is .*_annotations\.coco\.json, which cannot be read"):
        load_config(str(tmp_path / "scene.yaml"))


@pytest.mark.parametrize("images", ["images", "images/default"])
def test_cvat_export_has_subfolders_and_brushed_masks(tmp_path: Path, load_own: LoadOwn, images: str):
    # CVAT's "COCO 1.0": annotations/instances_default.json and images/ (newer: images/default/). What is drawn with the
    # brush is run lengths as a list, with iscrowd 1; "attributes" is there always.
    brushed = {
        **{"id": 3, "image_id": 1, "category_id": 1, "area": 2.0, "bbox": [1.0, 1.0, 1.0, 2.0], "iscrowd": 1},
        **{"segmentation": {"counts": [5, 2, 17], "size": [4, 6]}, "attributes": {"occluded": False, "rotation": 0.0}},
    }
    common = {"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0, "width": 6, "height": 4}
    content = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": 1, "name": "stone", "supercategory": ""}],
        "images": [{"id": 1, "file_name": "sub dir/a.jpg", **common}, {"id": 2, "file_name": "empty.jpg", **common}],
        "annotations": [brushed],
    }
    write_text(tmp_path / "annotations/instances_default.json", json.dumps(content))
    for name in ("sub dir/a.jpg", "empty.jpg"):
        save(tmp_path / images / name)
    split = {"images": images, "instances": "annotations/instances_default.json"}
    records = load_own(train=split)
    assert names_of(records) == ["a.jpg", "empty.jpg"]
    masks = [example_of(tmp_path, record, "mask_former_instance")["instances"].gt_masks.tensor for record in records]
    np.testing.assert_array_equal(masks[0], [STONES == 1])
    assert len(masks[1]) == 0
    assert mask_util.decode(records[0]["annotations"][0]["segmentation"]).tolist() == (STONES == 1).tolist()
    if images != "images":
        with pytest.raises(InputError, match=r"sub dir/a\.jpg does not exist.* write images: .*images/default\."):
            load_own(train={**split, "images": "images"})


def test_folder_that_a_json_names_too_is_told(tmp_path: Path, load_own: LoadOwn):
    write_coco(tmp_path, "images/a.jpg")
    with pytest.raises(InputError, match=rf"write images: {tmp_path}\.$"):
        load_own(train={"images": "images", "instances": "_annotations.coco.json"})
    assert len(load_own(train={"images": ".", "instances": "_annotations.coco.json"})) == 1


def test_panoptic_json_says_which_classes_are_things(tmp_path: Path, load_own: LoadOwn):
    # COCO's panoptic format: annotations/panoptic_SPLIT.json and panoptic_SPLIT/NAME.png
    save(tmp_path / "images/a.jpg")
    ids = CLASSES + 5
    save(tmp_path / "panoptic_train/a.png", np.dstack([ids, ids * 0, ids * 0]))
    categories = [{"id": 9 - i, "name": name, "isthing": int(i == 2)} for i, name in enumerate(SCENE["classes"])]
    segments = [{"id": 5 + i, "category_id": 9 - i, "area": int((i == CLASSES).sum()), "iscrowd": 0} for i in range(3)]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": categories,
    }
    write_text(tmp_path / "panoptic_train.json", json.dumps(content))
    split = {"images": "images", "panoptic": "panoptic_train.json", "panoptic_masks": "panoptic_train"}
    (record,) = load_own(train=split)
    assert MetadataCatalog.get("scene_train").stuff_classes == ["stone", "path", "grass"]  # in the order of their ids
    assert [(s["category_id"], s["isthing"]) for s in record["segments_info"]] == [(2, False), (1, False), (0, True)]
    with pytest.raises(InputError, match=r"'stone' has isthing 1 in .* but is not in DATASETS\.OWN\.scene\.things"):
        load_own(things=["path"], train=split)


def test_json_of_boxes_alone_is_refused(tmp_path: Path, load_own: LoadOwn):
    annotations = [{**annotation, "segmentation": []} for annotation in coco_content("a.jpg")["annotations"]]
    write_coco(tmp_path / "train", "a.jpg", annotations=annotations)
    with pytest.raises(InputError, match=r"All 2 annotations of .* have boxes alone"):
        load_own(train={"images": "train", "instances": "train/_annotations.coco.json"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": "5.5.0", "shapes": [], "imagePath": "a.jpg"}, "--from labelme"),
        ("<?xml version='1.0'?><annotations><image id='0'></image></annotations>", "--from cvat-xml"),
        ({"images": []}, "lists no categories"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "two categories with one id"),
    ],
)
def test_file_that_is_no_coco_is_refused_with_its_program(tmp_path: Path, content: Any, message: str):
    write_text(tmp_path / "a.json", content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=rf"scene\.train\.instances is .*a\.json, which .*{message}"):
        read_config(tmp_path, {"train": {"images": ".", "instances": "a.json"}})


# --- what is not understood ---


def test_wrong_level_of_folders_is_told_with_the_right_one(tmp_path: Path, load_own: LoadOwn):
    for name in ("a", "b"):
        save(tmp_path / f"data/train/images/{name}.jpg")
        save(tmp_path / f"data/train/labels/{name}.png", CLASSES)
    with pytest.raises(InputError, match=r"write images: .*data/train/images\."):
        load_own(**SCENE, train={"images": "data/train", "labels": "data/train/labels"})
    with pytest.raises(InputError, match=r"write labels: .*data/train/labels\."):
        load_own(**SCENE, train={"images": "data/train/images", "labels": "data/train"})
    with pytest.raises(InputError, match=r"data/train/image, which is no folder; .* has the folders images"):
        load_own(**SCENE, train={"images": "data/train/image", "labels": "data/train/labels"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "0 0.1 0.1 0.5 0.5 0.1 0.5", "--from yolo-seg"),
        ("a.json", '{"shapes": []}', "--from labelme"),
        ("a.jpg", "", "JPEG changes the values"),
    ],
)
def test_labels_of_another_kind_are_refused_with_what_reads_them(
    tmp_path: Path, load_own: LoadOwn, name: str, text: str, message: str
):
    save(tmp_path / "images/a.jpg")
    write_text(tmp_path / "labels" / name, text)
    with pytest.raises(InputError, match=rf"scene\.train\.labels .*{message}"):
        load_own(**SCENE, train={"images": "images", "labels": "labels"})


# --- channels and values ---


def test_bands_and_range_of_a_satellites_tiff_become_three_channels(tmp_path: Path, load_own: LoadOwn):
    bands = np.arange(4 * 6 * 6, dtype=np.uint16).reshape(4, 6, 6) * 20  # (rows, columns, bands), 0..2860
    (tmp_path / "images").mkdir()
    # GDAL writes bands side by side (INTERLEAVE=PIXEL) or one after the other (BAND).
    tifffile.imwrite(tmp_path / "images/a.tif", bands, photometric="minisblack", planarconfig="contig")
    planes = bands.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "images/b.tif", planes, photometric="minisblack", planarconfig="separate")
    tifffile.imwrite(tmp_path / "images/c.tif", planes.astype(np.float32), photometric="minisblack", compression="zlib")
    for name in "abc":
        save(tmp_path / f"labels/{name}.png", CLASSES)
    split = {"images": "images", "labels": "labels", "bands": [4, 3, 2]}
    expected = (bands[..., [3, 2, 1]].astype(np.float32) / 2860 * 255).round().transpose(2, 0, 1)
    records = load_own(**SCENE, range=[0, 2860], train=split)
    for record in records:
        example = example_of(tmp_path, record)
        assert example["image"].tolist() == expected.tolist()
        assert (example["height"], example["width"]) == (4, 6)
    (plain, _, floats) = load_own(**SCENE, train=split)
    assert example_of(tmp_path, plain)["image"].tolist() == (bands[..., [3, 2, 1]] >> 8).transpose(2, 0, 1).tolist()
    with pytest.raises(BadImageError, match=r"c\.tif cannot be used: its pixels are of the type float32.* range"):
        example_of(tmp_path, floats)
    (record, *_) = load_own(**SCENE, train={**split, "bands": [7, 3, 2]})
    with pytest.raises(BadImageError, match=r"a\.tif cannot be used: it has 6 bands, but band 7 is wanted"):
        example_of(tmp_path, record)


def test_range_is_for_pictures_of_12_bits_and_bands_for_those_with_transparency(tmp_path: Path, load_own: LoadOwn):
    save(tmp_path / "images/a.png", np.arange(24, dtype=np.uint16).reshape(4, 6) * 178)
    save(tmp_path / "labels/a.png", CLASSES)
    split = {"images": "images", "labels": "labels"}
    (record,) = load_own(**SCENE, range=[0, 4094], train=split)
    assert example_of(tmp_path, record)["image"][1].flatten()[[0, 1, 23]].tolist() == [0, 11, 255]
    save(tmp_path / "images/a.png", np.dstack([PICTURE, PICTURE[..., 0] + 30]))
    (record,) = load_own(**SCENE, bands=[4, 1, 2], train=split)
    assert example_of(tmp_path, record)["image"][:, 0, 0].tolist() == [120, 90, 90]


# --- what is said where files are not as the block says ---


def test_images_of_which_some_are_labelled_are_to_be_named_in_a_list(tmp_path: Path, load_own: LoadOwn):
    with pytest.raises(InputError, match=r"1 of 3 images .*2007_000001.* 2 images have one.* list:") as caught:
        load_own(**SCENE, train=voc(tmp_path))
    assert "suffix" not in str(caught.value)  # 2007_000001.jpg is no other ending of 2007_000032.png


def test_numbers_of_pictures_are_no_suffix(tmp_path: Path, load_own: LoadOwn):
    save(tmp_path / "images/frame_001.jpg")
    save(tmp_path / "labels/frame_002.png", CLASSES)
    with pytest.raises(InputError, match=r"1 of 1 images.*frame_001.*frame_002\.png") as caught:
        load_own(**SCENE, train={"images": "images", "labels": "labels"})
    assert "suffix" not in str(caught.value)


@pytest.mark.parametrize(("images", "labels"), [("s/*/images", "s/*/masks"), ("flat", "masks")])
def test_masks_of_single_objects_are_told_from_label_maps(tmp_path: Path, load_own: LoadOwn, images: str, labels: str):
    save(tmp_path / "s/00ae/images/00ae.png")
    save(tmp_path / "flat/00ae.png")
    for number in (1, 2):
        save(tmp_path / f"s/00ae/masks/{number}f.png", np.equal(STONES, number).astype(np.uint8) * 255)
        save(tmp_path / f"masks/00ae/{number}f.png", np.equal(STONES, number).astype(np.uint8) * 255)
    with pytest.raises(InputError, match=r"1f\.png: write objects instead of labels"):
        load_own(**SCENE, train={"images": images, "labels": labels})


def test_files_of_a_program_beside_the_images_are_told_from_labels(tmp_path: Path, load_own: LoadOwn):
    save(tmp_path / "data/ä b.jpg")
    write_text(tmp_path / "data/ä b.json", '{"shapes": []}')
    with pytest.raises(InputError, match="--from labelme"):
        load_own(**SCENE, train={"images": "data", "labels": "data"})


@pytest.mark.parametrize(
    ("labels", "remedy"), [("a.json", "as instances"), ("a.txt", "as list"), ("a.tar/labels", "unpack it")]
)
def test_a_file_in_place_of_a_folder_is_said_with_its_key(tmp_path: Path, load_own: LoadOwn, labels: str, remedy: str):
    save(tmp_path / "images/a.jpg")
    write_text(tmp_path / labels.partition("/")[0], "{}")
    with pytest.raises(InputError, match=rf"scene\.train\.labels .* no folder but a file: .*{remedy}"):
        load_own(**SCENE, train={"images": "images", "labels": labels})


def test_a_json_that_names_the_folder_of_images_is_said_to_start_above_it(tmp_path: Path, load_own: LoadOwn):
    # Label Studio's COCO export has images/a.jpg, beside result.json.
    save(tmp_path / "images/sub dir/a.JPG")
    image = {"id": 1, "file_name": "images\\sub dir/a.JPG", "height": 4, "width": 6}
    content = {"images": [image], "annotations": [], "categories": [{"id": 0, "name": "stone"}]}
    write_text(tmp_path / "result.json", json.dumps(content))
    with pytest.raises(InputError, match=rf"write images: {tmp_path}\."):
        load_own(train={"images": "images", "instances": "result.json"})
    (record,) = load_own(train={"images": ".", "instances": "result.json"})
    assert names_of([record]) == ["a.JPG"]
