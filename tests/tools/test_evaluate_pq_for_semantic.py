from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from maskformer.data.files.masks import encode_segments
from maskformer.evaluation import SemanticEvaluator
from maskformer.tools.evaluate_pq_for_semantic import main

NAME = "two_by_two_sem_seg"
LABELS = (np.array([[0, 0], [1, 255]]), np.array([[2, 2], [2, 2]]))


@pytest.fixture(autouse=True)
def _dataset(tmp_path: Path) -> Iterator[None]:
    """Two images of 2 x 2 pixels and three classes, whose ids in the dataset are 10, 20, 30."""
    records = [
        {"file_name": f"{index}.jpg", "sem_seg_file_name": str(tmp_path / f"{index}.png")}
        for index in range(len(LABELS))
    ]
    for record, label in zip(records, LABELS):
        Image.fromarray(label.astype(np.uint8)).save(record["sem_seg_file_name"])
    DatasetCatalog.register(NAME, lambda: records)
    ids = {10: 0, 20: 1, 30: 2}
    MetadataCatalog.get(NAME).set(
        stuff_classes=["a", "b", "c"], ignore_label=255, stuff_dataset_id_to_contiguous_id=ids
    )
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def predictions_of(tmp_path: Path) -> Callable[..., Path]:
    """A function (class maps) that evaluates them and returns the file that the evaluator wrote."""

    def write(*class_maps: list) -> Path:
        evaluator = SemanticEvaluator(NAME, str(tmp_path / "out"))
        evaluator.reset()
        for record, class_map in zip(DatasetCatalog.get(NAME), class_maps):
            scores = torch.nn.functional.one_hot(torch.tensor(class_map), 3).permute(2, 0, 1)
            evaluator.process([record], [{"sem_seg": scores}])
        evaluator.evaluate()
        return tmp_path / "out" / "sem_seg_predictions.json"

    return write


def run(file: Path, name: str = NAME) -> int:
    return main(["--json-file", str(file), "--dataset-name", name])


def test_a_perfect_prediction_has_pq_100(predictions_of, capsys):
    assert run(predictions_of([[0, 0], [1, 1]], [[2, 2], [2, 2]])) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "PQ 100.000  SQ 100.000  RQ 100.000"


def test_quality_of_two_images_by_hand(predictions_of, capsys):
    """Class a is invented once and found once; b is found; c has three of four pixels."""
    assert run(predictions_of([[0, 0], [1, 1]], [[2, 2], [2, 0]])) == 0
    quality = 100 * (1 / 1.5 + 1 + 0.75) / 3
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"PQ {quality:.3f}  SQ {100 * 2.75 / 3:.3f}")


@pytest.fixture
def error_of(capsys) -> Callable[..., str]:
    def run_with(*words: object) -> str:
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return run_with


def edit(file: Path, change: Callable[[list], object]) -> Path:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


def test_what_is_wrong_with_the_predictions_is_told(predictions_of, error_of, tmp_path):
    perfect = ([[0, 0], [1, 1]], [[2, 2], [2, 2]])
    assert "no prediction for 1.jpg" in error_of(edit(predictions_of(*perfect), lambda entries: entries.pop()))
    file = edit(predictions_of(*perfect), lambda entries: entries.append({**entries[0], "file_name": "2.jpg"}))
    assert "2.jpg, which is not in it" in error_of(file)
    file = edit(predictions_of(*perfect), lambda entries: entries[0].update(category_id=7))
    assert "0.jpg has category_id 7" in error_of(file)
    Image.fromarray(np.zeros((3, 2), dtype=np.uint8)).save(tmp_path / "0.png")
    assert "0.jpg is 2 x 2 pixels (width x height) but its label is 2 x 3" in error_of(file)


def test_files_and_datasets_that_are_none_are_named(predictions_of, error_of, tmp_path):
    assert "nowhere.json, which cannot be read" in error_of(tmp_path / "nowhere.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "category_id, file_name and segmentation" in error_of(tmp_path / "other.json")
    file = predictions_of([[0, 0], [1, 1]], [[2, 2], [2, 2]])
    assert "Dataset 'nothing' is not registered" in error_of(file, "nothing")


def test_ids_and_the_label_to_ignore_have_their_defaults(predictions_of, capsys):
    for key in ("ignore_label", "stuff_dataset_id_to_contiguous_id"):
        delattr(MetadataCatalog.get(NAME), key)
    assert run(predictions_of([[0, 0], [1, 1]], [[2, 2], [2, 2]])) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("PQ 100.000")


def test_names_that_are_missing_are_told(predictions_of, error_of):
    file = predictions_of([[0, 0], [1, 1]], [[2, 2], [2, 2]])
    del MetadataCatalog.get(NAME).stuff_classes
    assert f"{NAME} has no stuff_classes" in error_of(file)


def test_labels_of_an_own_dataset_are_read_as_its_block_says(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    Image.fromarray(np.array([[1, 2], [2, 0]], np.uint8)).save(tmp_path / "labels" / "a.png")  # 0: ignored
    block = {"classes": ["x", "y"], "offset": 1, "ignore": 0, "val": {"images": "images", "labels": "labels"}}
    (tmp_path / "a.yaml").write_text(json.dumps({"DATASETS": {"OWN": {"pq": block}}}))
    entries = [
        {
            "file_name": str(tmp_path / "images" / "a.png"),
            "category_id": index + 1,
            "segmentation": next(iter(encode_segments(np.array([[0, 1], [1, 1]]) == index, [1]).values())),
        }
        for index in range(2)
    ]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    words = ["--json-file", str(tmp_path / "p.json"), "--dataset-name", "pq_val"]
    try:
        assert main([*words, "--config-file", str(tmp_path / "a.yaml")]) == 0
    finally:
        DatasetCatalog.remove("pq_val")
        MetadataCatalog.remove("pq_val")
    assert capsys.readouterr().out.splitlines()[-1].startswith("PQ 100.000")
