"""The names of SPEC 6 with complete metadata, read from real samples and from a drawn Cityscapes."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as rle
import pytest
from cityscapes_layout import NAMES, draw_instance_ids, write_cityscapes
from dataset_tests import DatasetTests
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

import maskformer
from maskformer.config import load_config
from maskformer.data.datasets import register_all
from maskformer.data.datasets.registration import index_colour
from maskformer.data.files.reading import read_label_map, read_segment_ids
from maskformer.evaluation import MEASURES, build_evaluator
from maskformer.structures import InputError

REFERENCE2 = Path(__file__).resolve().parents[2] / "reference2"
SEMANTIC = {  # name without split: classes, ignore label, a class by its index
    "ade20k_full_sem_seg": (847, 65535, (7, "bed")),
    "mapillary_vistas_sem_seg": (65, 65, (0, "Bird")),
    "cityscapes_fine_sem_seg": (19, 255, (18, "bicycle")),
}
SAMPLES = {  # name: images, and the values that occur in all their labels
    "ade20k_full_sem_seg_train": 2,
    "ade20k_full_sem_seg_val": 1,
    "coco_2017_train_stuff_10k_sem_seg": 5,
    "coco_2017_test_stuff_10k_sem_seg": 4,
    "mapillary_vistas_sem_seg_train": 1,
    "mapillary_vistas_sem_seg_val": 1,
}


class TestCityscapes(DatasetTests):
    names = tuple(f"cityscapes_fine_{task}_val" for task in ("sem_seg", "instance_seg", "panoptic"))
    write = staticmethod(write_cityscapes)


@pytest.mark.samples
class TestRealSamples(DatasetTests):
    names = (*SAMPLES, "ade20k_panoptic_val", "ade20k_panoptic_train")

    @pytest.fixture
    def root(self, samples_root: Path) -> Iterator[Path]:
        register_all(samples_root)
        yield samples_root
        register_all("datasets")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """All datasets registered under a temporary root; afterwards under the default one again."""
    before = set(DatasetCatalog.list())
    register_all(tmp_path)
    yield tmp_path
    register_all("datasets")
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("name", [f"{name}_{split}" for name in SEMANTIC for split in ("train", "val")])
def test_semantic_metadata_is_complete(root: Path, name: str) -> None:
    num_classes, ignore_label, (index, class_name) = SEMANTIC[name.rpartition("_")[0]]
    metadata = MetadataCatalog.get(name)
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == num_classes
    assert metadata.ignore_label == ignore_label and metadata.stuff_classes[index] == class_name
    assert sorted(metadata.stuff_dataset_id_to_contiguous_id.values()) == list(range(num_classes))
    assert metadata.evaluator_type in MEASURES
    assert str(root) in (metadata.get("image_root") or metadata.get("image_dir"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_coco_stuff_has_things_first_and_ids_of_coco(root: Path, split: str) -> None:
    metadata = MetadataCatalog.get(f"coco_2017_{split}_stuff_10k_sem_seg")
    assert (metadata.stuff_classes[0], metadata.stuff_classes[79], metadata.stuff_classes[170]) == (
        *("person", "toothbrush"),
        "wood",
    )
    assert metadata.stuff_dataset_id_to_contiguous_id[182] == 170
    assert len({tuple(colour) for colour in metadata.stuff_colors[80:]}) == 91
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")


def test_ade20k_instances_are_the_hundred_things_under_the_names_of_the_released_models(root: Path) -> None:
    metadata = MetadataCatalog.get("ade20k_instance_val")
    assert metadata.thing_classes == json.loads((REFERENCE2 / "ade20k_instance_names.json").read_text())
    assert len(metadata.thing_colors) == 100 and metadata.evaluator_type == "coco"
    panoptic = MetadataCatalog.get("ade20k_panoptic_val")
    assert metadata.json_file == panoptic.json_file
    table = metadata.thing_dataset_id_to_contiguous_id
    assert list(table.values()) == list(range(100))
    assert list(table) == list(panoptic.thing_dataset_id_to_contiguous_id)  # ids of the JSON are the 150 classes'
    assert panoptic.stuff_classes[8] == "window " and metadata.thing_classes[table[8]] == "windowpane"


@pytest.mark.parametrize("split", ["train", "val"])
def test_mapillary_panoptic_has_the_classes_of_the_label_maps_with_ids_from_1(root: Path, split: str) -> None:
    metadata, semantic = (MetadataCatalog.get(f"mapillary_vistas_{task}_{split}") for task in ("panoptic", "sem_seg"))
    assert metadata.stuff_classes == metadata.thing_classes == semantic.stuff_classes
    assert metadata.stuff_dataset_id_to_contiguous_id == {index + 1: index for index in range(65)}
    assert len(metadata.thing_dataset_id_to_contiguous_id) == 37
    assert metadata.thing_dataset_id_to_contiguous_id[1] == 0 and 3 not in metadata.thing_dataset_id_to_contiguous_id
    assert (metadata.evaluator_type, metadata.ignore_label) == ("mapillary_vistas_panoptic_seg", 65)


def test_panoptic_coco_with_semantic_truth_is_detectron2s_otherwise(root: Path) -> None:
    theirs, ours = (MetadataCatalog.get(f"coco_2017_val_panoptic{end}") for end in ("", "_with_sem_seg"))
    for key in ("stuff_classes", "stuff_colors", "thing_classes", "thing_dataset_id_to_contiguous_id"):
        assert ours.get(key) == theirs.get(key)
    assert (ours.evaluator_type, ours.ignore_label, ours.label_divisor) == ("coco_panoptic_seg", 255, 1000)
    assert theirs.stuff_dataset_id_to_contiguous_id.items() < ours.stuff_dataset_id_to_contiguous_id.items()
    assert ours.json_file == str(root / "coco/annotations/instances_val2017.json")


def test_index_colours_differ() -> None:
    assert len({tuple(index_colour(index)) for index in range(847)}) == 847
    assert [index_colour(i) for i in range(3)] == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]  # PASCAL VOC's


@pytest.mark.samples
@pytest.mark.parametrize("name", SAMPLES)
def test_real_samples_load_and_hold_classes_only(root: Path, samples_root: Path, name: str) -> None:
    register_all(samples_root)
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    assert len(records) == SAMPLES[name]
    for record in records:
        label = read_label_map(record["sem_seg_file_name"], len(metadata.stuff_classes), metadata.ignore_label)
        assert label.shape == Image.open(record["file_name"]).size[::-1]
        assert (label != metadata.ignore_label).mean() > 0.5


def test_cityscapes_entries_are_the_drawn_pixels(root: Path) -> None:
    folder = write_cityscapes(root)
    semantic, instances, panoptic = (
        DatasetCatalog.get(f"cityscapes_fine_{task}_val") for task in ("sem_seg", "instance_seg", "panoptic")
    )
    assert [r["image_id"] for r in semantic] == [r["image_id"] for r in panoptic] == list(NAMES)
    assert semantic[0]["file_name"] == str(folder / "leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png")
    for name, semantic_record, instance_record, panoptic_record in zip(
        NAMES, semantic, instances, panoptic, strict=True
    ):
        ids = draw_instance_ids(name)
        label = read_label_map(semantic_record["sem_seg_file_name"], 19, 255)
        assert np.array_equal(label == 13, ids // 1000 == 26)
        assert panoptic_record["sem_seg_file_name"] == semantic_record["sem_seg_file_name"]
        found = {(a["category_id"], a["iscrowd"]): [] for a in instance_record["annotations"]}
        for annotation in instance_record["annotations"]:
            found[annotation["category_id"], annotation["iscrowd"]].append(annotation)
        assert {key: len(value) for key, value in found.items()} == {(0, 0): 1, (2, 0): 2, (7, 1): 1}
        assert np.array_equal(rle.decode(found[2, 0][1]["segmentation"]), ids == 26001)
        rows, columns = np.nonzero(ids == 24000)
        box = BoxMode.convert(found[0, 0][0]["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        segments = {s["id"]: s for s in panoptic_record["segments_info"]}
        assert {(s["category_id"], s["isthing"], s["iscrowd"]) for s in segments.values()} == {
            *((0, False, 0), (2, False, 0), (10, False, 0)),
            *((11, True, 0), (13, True, 0), (18, True, 1)),
        }
        assert np.array_equal(read_segment_ids(panoptic_record["pan_seg_file_name"]) == 26001, ids == 26001)


def test_missing_cityscapes_files_name_what_makes_them(root: Path) -> None:
    with pytest.raises(InputError, match=r"leftImg8bit/val has no image"):
        DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    folder = write_cityscapes(root)
    next(folder.rglob("*labelTrainIds.png")).unlink()
    with pytest.raises(InputError, match="createTrainIdLabelImgs"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_val")
    (folder / "gtFine" / "cityscapes_panoptic_val.json").write_text(
        '{"annotations": [{"image_id": "nowhere_0_0", "file_name": "a.png", "segments_info": []}]}'
    )
    with pytest.raises(InputError, match="names the image nowhere_0_0"):
        DatasetCatalog.get("cityscapes_fine_panoptic_val")


def test_nothing_imports_cityscapes_modules_of_detectron2() -> None:
    for path in Path(maskformer.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("detectron2"):
                names = [node.module, *(alias.name for alias in node.names)]
                assert not [name for name in names if "cityscapes" in (name or "").lower()], path


def test_cityscapes_names_are_ours_in_place_of_detectron2s(root: Path) -> None:
    for task in ("sem_seg", "instance_seg"):
        loader = DatasetCatalog.data[f"cityscapes_fine_{task}_test"]
        assert loader.func.__module__ == "maskformer.data.datasets.cityscapes"
    write_cityscapes(root)
    evaluator = build_evaluator(
        load_config("", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19"]), "cityscapes_fine_sem_seg_val"
    )
    assert {type(e).__module__ for e in evaluator._evaluators} == {"maskformer.evaluation.cityscapes"}
