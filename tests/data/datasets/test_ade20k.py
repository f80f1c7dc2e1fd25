from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from maskformer.data import verify_dataset
from maskformer.data.datasets import register_all
from maskformer.data.datasets.registration import read_categories
from maskformer.structures import InputError

NAMES = {f"ade20k_panoptic_{split}" for split in ("train", "val")}


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Path]:
    """All datasets of ours registered under a temporary root, and taken out again."""
    before = set(DatasetCatalog.list())
    register_all(tmp_path)
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write_json(root: Path, category: int) -> None:
    folder = root / "ADEChallengeData2016"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": "ADE_val_1", "file_name": "ADE_val_1.jpg", "height": 5, "width": 7}],
        "annotations": [
            {
                "image_id": "ADE_val_1",
                "file_name": "ADE_val_1.png",
                "segments_info": [{"id": 3, "category_id": category, "iscrowd": 0}],
            }
        ],
    }
    (folder / "ade20k_panoptic_val.json").write_text(json.dumps(content))


def test_names_resolve_and_a_second_call_changes_nothing(registered: Path) -> None:
    before = {name: MetadataCatalog.get(name).as_dict() for name in NAMES}
    register_all(registered)
    assert set(DatasetCatalog.list()) >= NAMES
    assert {name: MetadataCatalog.get(name).as_dict() for name in NAMES} == before


def test_another_root_replaces_the_first(registered: Path) -> None:
    register_all(registered / "elsewhere")
    assert MetadataCatalog.get("ade20k_panoptic_val").image_root == str(
        registered / "elsewhere" / "ADEChallengeData2016" / "images" / "validation"
    )


def test_metadata_is_what_evaluators_and_visualizer_ask_for(registered: Path) -> None:
    metadata = MetadataCatalog.get("ade20k_panoptic_train")
    assert metadata.evaluator_type == "ade20k_panoptic_seg"
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert len(metadata.thing_classes) == len(metadata.stuff_classes) == len(metadata.stuff_colors) == 150
    assert metadata.stuff_classes[:2] == ["wall", "building"] and metadata.thing_classes[7] == "bed"
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    assert len(things) == 100 and 7 in things and 0 not in things
    assert stuff == {i: i for i in range(150)} and things.items() <= stuff.items()


def test_names_are_those_of_the_semantic_dataset_of_detectron2() -> None:
    names = [category["name"] for category in read_categories("ade20k_150.json")]
    assert names == MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes


def test_entry_has_the_files_and_the_kind_of_each_segment(registered: Path) -> None:
    write_json(registered, category=7)
    folder = registered / "ADEChallengeData2016"
    assert DatasetCatalog.get("ade20k_panoptic_val") == [
        {
            "file_name": str(folder / "images" / "validation" / "ADE_val_1.jpg"),
            "image_id": "ADE_val_1",
            "height": 5,
            "width": 7,
            "sem_seg_file_name": str(folder / "annotations_detectron2" / "validation" / "ADE_val_1.png"),
            "pan_seg_file_name": str(folder / "ade20k_panoptic_val" / "ADE_val_1.png"),
            "segments_info": [{"id": 3, "category_id": 7, "iscrowd": 0, "isthing": True}],
        }
    ]
    write_json(registered, category=0)
    assert DatasetCatalog.get("ade20k_panoptic_val")[0]["segments_info"][0]["isthing"] is False


def test_unknown_category_names_json_and_image(registered: Path) -> None:
    write_json(registered, category=150)
    with pytest.raises(
        InputError, match=r"ade20k_panoptic_val\.json .* ADE_val_1\.png the category 150; expected .* 0\.\.149"
    ):
        DatasetCatalog.get("ade20k_panoptic_val")


def test_missing_dataset_says_where_it_was_looked_for(registered: Path) -> None:
    with pytest.raises(InputError, match=r"ADEChallengeData2016/images/training; it does not exist"):
        verify_dataset("ade20k_panoptic_train", 150, is_train=True)


def test_panoptic_evaluator_translates_classes_back(registered: Path, tmp_path: Path) -> None:
    evaluation = pytest.importorskip("detectron2.evaluation")
    torch = pytest.importorskip("torch")
    evaluator: Any = evaluation.COCOPanopticEvaluator("ade20k_panoptic_val", str(tmp_path))
    evaluator.reset()
    segments = [
        {"id": 1, "isthing": True, "category_id": 7},
        {"id": 2, "isthing": False, "category_id": 0},
    ]
    output = {"panoptic_seg": (torch.tensor([[1, 2]], dtype=torch.int32), segments)}
    evaluator.process([{"file_name": "a.jpg", "image_id": "a"}], [output])
    assert [segment["category_id"] for segment in segments] == [7, 0]
