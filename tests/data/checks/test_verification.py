from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data.datasets import load_coco_json, load_sem_seg

from maskformer.data import verify_dataset
from maskformer.structures import InputError

Write = Callable[[str, Any], str]
SEMANTIC = [{"file_name": "a.jpg", "sem_seg_file_name": "a.png"}]
INSTANCES = [{"file_name": "a.jpg", "annotations": []}]


def message(name: str, num_classes: int = 2, is_train: bool = True) -> str:
    with pytest.raises(InputError) as error:
        verify_dataset(name, num_classes, is_train=is_train)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_entries_of_a_fitting_dataset_are_returned(register_dataset: Callable) -> None:
    name = register_dataset("tiny", SEMANTIC, stuff_classes=["a", "b"])
    assert verify_dataset(name, 2, is_train=True) == SEMANTIC


def test_unregistered_name_lists_close_ones_and_the_key(register_dataset: Callable) -> None:
    register_dataset("holiday_sem_seg_train", SEMANTIC)
    text = message("holiday_semseg_train")
    assert "'holiday_semseg_train' is not registered" in text
    assert "holiday_sem_seg_train" in text and "DATASETS.TRAIN" in text
    assert "DATASETS.TEST" in message("qqqq", is_train=False)


@pytest.mark.parametrize("setting", ["/some/where", None])
def test_missing_folder_names_the_variable_and_the_preparation(
    setting: str | None, register_dataset: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if setting is None:
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    else:
        monkeypatch.setenv("DETECTRON2_DATASETS", setting)
    folder = str(tmp_path / "ADEChallengeData2016" / "images" / "training")
    text = message(register_dataset("tiny", SEMANTIC, image_root=folder))
    assert folder in text and "does not exist" in text
    assert f"DETECTRON2_DATASETS is {setting or 'not set'}" in text
    assert "`python datasets/prepare_ade20k_sem_seg.py`" in text


def test_missing_json_is_named(register_dataset: Callable, tmp_path: Path) -> None:
    json_file = str(tmp_path / "panoptic.json")
    assert json_file in message(register_dataset("tiny", SEMANTIC, panoptic_json=json_file))
    assert json_file in message(register_dataset("tiny_2", SEMANTIC, json_file=json_file))


def test_empty_folder_is_said_to_be_empty(register_dataset: Callable, tmp_path: Path) -> None:
    assert "the folder is empty" in message(register_dataset("tiny", SEMANTIC, image_root=str(tmp_path)))


@pytest.mark.parametrize("state", ["absent", "empty"])
def test_label_folder_that_is_not_prepared_names_the_command(
    state: str, register_dataset: Callable, write_png: Write, tmp_path: Path
) -> None:
    write_png("ADEChallengeData2016/annotations/training/a.png", [[1]])
    prepared = tmp_path / "ADEChallengeData2016" / "annotations_detectron2" / "training"
    if state == "empty":
        prepared.mkdir(parents=True)
    text = message(register_dataset("tiny", SEMANTIC, sem_seg_root=str(prepared)))
    assert str(prepared) in text and "there but not prepared" in text
    assert "`python datasets/prepare_ade20k_sem_seg.py`" in text


def test_dataset_without_any_pair_is_said_to_be_empty(
    register_dataset: Callable, write_png: Write, tmp_path: Path
) -> None:
    write_png("images/a.jpg", [[1]])
    write_png("labels/b.png", [[1]])
    write_png("labels/c.png", [[1]])  # with equal numbers Detectron2 would pair files of different names
    roots = {"image_root": str(tmp_path / "images"), "sem_seg_root": str(tmp_path / "labels")}
    name = register_dataset("tiny", lambda: load_sem_seg(roots["sem_seg_root"], roots["image_root"]), **roots)
    text = message(name)
    assert "Dataset tiny is empty" in text and roots["sem_seg_root"] in text and "DATASETS.TRAIN" in text


def test_label_that_belongs_to_another_image_is_refused(register_dataset: Callable) -> None:
    pairs = [("x/a.jpg", "y/b.png"), ("x/b.jpg", "y/c.png")]
    records = [{"file_name": image, "sem_seg_file_name": label} for image, label in pairs]
    text = message(register_dataset("tiny", records))
    assert "pairs the image x/a.jpg with y/b.png, the label of x/b.jpg" in text


def test_labels_may_be_named_otherwise_than_their_images(register_dataset: Callable) -> None:
    records = [{"file_name": f"{i}_image.jpg", "sem_seg_file_name": f"{i}_label.png"} for i in range(3)]
    assert verify_dataset(register_dataset("tiny", records), 2, is_train=True) == records


def test_json_that_breaks_off_is_explained(register_dataset: Callable, tmp_path: Path) -> None:
    json_file = tmp_path / "instances.json"
    json_file.write_text('{"images": [')
    name = register_dataset("tiny", lambda: load_coco_json(str(json_file), str(tmp_path)), json_file=str(json_file))
    assert re.search(r"instances\.json is no JSON", message(name))


def test_input_error_of_a_loader_is_passed_on(register_dataset: Callable) -> None:
    def load() -> list:
        raise InputError("This file is wrong.")

    assert message(register_dataset("tiny", load)) == "This file is wrong."


def test_number_of_classes_is_compared_with_the_list_that_the_labels_index(register_dataset: Callable) -> None:
    classes = {"thing_classes": ["a", "b"], "stuff_classes": ["a", "b", "c"]}
    semantic = register_dataset("tiny_semantic", SEMANTIC, **classes)
    text = message(semantic, 150)
    assert "has 3 classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 150" in text
    assert "set MODEL.SEM_SEG_HEAD.NUM_CLASSES to 3" in text
    assert verify_dataset(semantic, 3, is_train=True)
    instances = register_dataset("tiny_instance", INSTANCES, **classes)
    assert "has 2 classes" in message(instances, 3)
    assert verify_dataset(instances, 2, is_train=True)


def test_model_with_more_classes_may_be_evaluated_on_the_things_alone(register_dataset: Callable) -> None:
    name = register_dataset("tiny", INSTANCES, thing_classes=["a", "b"])
    assert verify_dataset(name, 3, is_train=False)
    assert "NUM_CLASSES is 1" in message(name, 1, is_train=False)


def test_dataset_without_class_names_is_accepted_with_a_warning(
    register_dataset: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    assert verify_dataset(register_dataset("tiny", SEMANTIC), 3, is_train=True)
    assert "tiny names no classes" in caplog.text
