from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_dataset
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

from maskformer.data.checks.inspection import explain_foreign
from maskformer.data.datasets.registration import register
from maskformer.tools.check_dataset import choose, main

NAME = "tiny_checked"


@pytest.fixture(autouse=True)
def _unregister() -> Iterator[None]:
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str]]:
    """A function (labels, *options, **record) that registers label maps of 3 classes and checks them."""

    def run(labels: list[Any], *options: str, ignore_label: int = 255, **changes: Any) -> tuple[int, str]:
        records = []
        for number, label in enumerate(labels):
            label = np.asarray(label, dtype=np.uint8)
            files = [tmp_path / kind / f"{number}.png" for kind in ("images", "labels")]
            for file, pixels in zip(files, (np.zeros((2, 3, 3), dtype=np.uint8), label), strict=True):
                file.parent.mkdir(exist_ok=True)
                Image.fromarray(pixels).save(file)
            records.append({"file_name": str(files[0]), "sem_seg_file_name": str(files[1]), **changes})
        folders = {"image_root": str(tmp_path / "images"), "sem_seg_root": str(tmp_path / "labels")}
        register(NAME, lambda: records, stuff_classes=["a", "b", "c"], ignore_label=ignore_label, **folders)
        code = main([NAME, "--root", str(tmp_path), *options])
        return code, capsys.readouterr().out

    return run


def test_good_dataset_has_its_histogram_and_exit_code_0(check: Callable) -> None:
    code, out = check([[[0, 0, 1], [0, 255, 255]], [[255, 255, 255]] * 2])
    assert code == 0 and "nothing wrong was found" in out
    assert "2 of 2 images looked at, 3 classes" in out
    assert "a   75.00 % of pixels" in out and "b   25.00 % of pixels" in out
    assert "classes that do not occur: 1 of 3, first c" in out
    assert "images without annotation: 1, first" in out and "1.png" in out
    assert "most segments in an image: 2" in out


def test_unprepared_labels_are_recognised(check: Callable) -> None:
    code, out = check([[[0, 0, 1], [2, 3, 3]], [[1, 1, 3]] * 2])
    assert code == 1
    assert "FOUND: Labels hold 3 (in 2 images); expected 0..2 or 255" in out
    assert "not prepared, 0 still means unlabelled" in out


def test_offset_of_one_and_wrong_ignore_value_are_recognised(check: Callable) -> None:
    code, out = check([[[1, 1, 1], [2, 3, 255]]])
    assert code == 1 and "classes seem to be numbered from 1" in out
    code, out = check([[[0, 1, 2], [2, 2, 255]]], ignore_label=65)
    assert code == 1 and "is 255 the value of pixels without a class? ignore_label is 65" in out
    assert "of another dataset" in explain_foreign({7: 1, 9: 1}, [0, 1, 7, 9], 3, 255)


def test_more_segments_than_queries_and_sizes_that_differ_are_found(check: Callable) -> None:
    code, out = check([[[0, 1, 2], [0, 1, 2]]], "--queries", "2")
    assert code == 1 and "has 3 segments but there are 2 queries, so 1 cannot be learned" in out
    code, out = check([[[0, 1, 2]]])
    assert code == 1 and "is 3 x 2 pixels (width x height) but its label" in out and "is 3 x 1" in out
    code, out = check([[[0, 1, 2], [0, 1, 2]]], height=9, width=3)
    assert code == 1 and "but its annotation says that it is 3 x 9" in out


def test_files_without_partner_are_found_and_unreadable_ones_named(check: Callable, tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"lonely_{kind}.png").write_bytes(b"")
    code, out = check([[[0, 1, 2]] * 2])
    assert code == 1
    assert f"1 files in {tmp_path / 'images'} have no label of the same name, first lonely_images.png" in out
    assert f"1 files in {tmp_path / 'labels'} have no image of the same name, first lonely_labels.png" in out
    code, out = check([[[0, 1, 2]] * 2], sem_seg_file_name=str(tmp_path / "labels" / "lonely_labels.png"))
    assert code == 1 and "lonely_labels.png cannot be read: it is empty" in out


def test_panoptic_map_that_disagrees_with_its_json_is_found(check: Callable, tmp_path: Path) -> None:
    file = tmp_path / "pan.png"
    Image.fromarray(np.array([[[7, 0, 0], [7, 0, 0], [9, 0, 0]]] * 2, dtype=np.uint8)).save(file)
    segments = [{"id": 7, "category_id": 0}, {"id": 9, "category_id": 2, "iscrowd": 1}]
    label = [[[0, 1, 2]] * 2]
    code, out = check(label, pan_seg_file_name=str(file), segments_info=segments)
    assert code == 0 and "most segments in an image: 1" in out  # a crowd is no target
    code, out = check(label, pan_seg_file_name=str(file), segments_info=segments[:1])
    assert code == 1 and "has pixels of the segment 9, which the dataset's JSON does not name" in out
    code, out = check(label, pan_seg_file_name=str(file), segments_info=[{**segments[0], "area": 4}, segments[1]])
    assert code == 0
    code, out = check(label, pan_seg_file_name=str(file), segments_info=[{**segments[0], "area": 5}, segments[1]])
    assert code == 1 and "has 4 pixels of the segment 7, of which the JSON says that its area is 5" in out
    more = [*segments, {"id": 5, "category_id": 1}]
    code, out = check(label, pan_seg_file_name=str(file), segments_info=more)
    assert code == 1 and "Segment 5 of the dataset's JSON has no pixel in" in out
    code, out = check(label, pan_seg_file_name=str(file), segments_info=[*segments, {**more[2], "iscrowd": 1}])
    assert code == 1 and "has 0 pixels of the segment 5" in out


def test_instances_are_counted_and_their_classes_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.fromarray(np.zeros((2, 3, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    annotations = [{"category_id": 0}, {"category_id": 0}, {"category_id": 4}, {"category_id": 1, "iscrowd": 1}]
    record = {"file_name": str(tmp_path / "a.png"), "annotations": annotations}
    register(NAME, lambda: [record], thing_classes=["cat", "dog"])
    assert main([NAME]) == 1
    out = capsys.readouterr().out
    assert "cat  100.00 % of instances" in out and "Labels hold 4 (in 1 images); expected 0..1" in out
    assert "most segments in an image: 3" in out


def test_unknown_name_and_missing_dataset_are_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["ade20k_panoptic_trian", "--root", str(tmp_path)]) == 2
    assert "close to it are ade20k_panoptic_train" in capsys.readouterr().err
    assert main(["ade20k_full_sem_seg_val", "--root", str(tmp_path)]) == 2
    assert "python datasets/prepare_ade20k_full_sem_seg.py" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_sample_is_evenly_spread() -> None:
    records = [{"number": number} for number in range(11)]
    assert [record["number"] for record in choose(records, 3)] == [0, 5, 10]
    assert choose(records, 20) is records


@pytest.mark.samples
@pytest.mark.parametrize(
    ("name", "segments"),
    [("ade20k_panoptic_val", 16), ("coco_2017_train_stuff_10k_sem_seg", None), ("ade20k_full_sem_seg_train", 16)],
)
def test_real_samples_have_nothing_wrong(
    samples_root: Path, capsys: pytest.CaptureFixture, name: str, segments: int | None
) -> None:
    assert main([name, "--root", str(samples_root), "--all"]) == 0
    out = capsys.readouterr().out
    assert "nothing wrong was found" in out
    assert segments is None or f"most segments in an image: {segments} " in out


def test_own_dataset_is_checked_by_the_numbers_of_its_block(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name, label in (("a", [[1, 1, 2]]), ("b", [[0, 2, 2]])):
        Image.fromarray(np.zeros((1, 3, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.asarray(label, dtype=np.uint8)).save(tmp_path / "labels" / f"{name}.png")
    block = "classes: [grass, path], offset: 1, ignore: 0, val: {images: images, labels: labels}"
    (tmp_path / "own.yaml").write_text(f"DATASETS: {{OWN: {{checked_garden: {{{block}}}}}}}\n")
    command = ["checked_garden_val", "--config-file", str(tmp_path / "own.yaml"), "--root", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "grass   40.00 % of pixels" in out and "path    60.00 % of pixels" in out
    Image.fromarray(np.full((1, 3), 7, dtype=np.uint8)).save(tmp_path / "labels" / "b.png")
    assert main(command) == 1
    assert "b.png holds the value 7; expected those of the 2 classes (1..2) or an ignored one (0)" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("MASK_FORMER: {NUM_OBJECT_QUERIES: 3}, SEM_SEG_HEAD: {NUM_CLASSES: 3}", "4 segments but there are 3 queries"),
        ("SEM_SEG_HEAD: {NUM_CLASSES: 2}", "has 3 classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 2"),
        ("SEM_SEG_HEAD: {NUM_CLASSES: 3}", None),
    ],
)
def test_dataset_is_checked_for_the_model_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture, keys: str, found: str | None
) -> None:
    toy_dataset.build(tmp_path, count=2)
    split = "{images: images, panoptic: panoptic.json, panoptic_masks: panoptic}"
    block = f"classes: [water, box, ball], things: [box, ball], offset: 1, val: {split}"
    (tmp_path / "own.yaml").write_text(f"DATASETS: {{OWN: {{checked_toy: {{{block}}}}}}}\nMODEL: {{{keys}}}\n")
    code = main(["checked_toy_val", "--config-file", str(tmp_path / "own.yaml"), "--root", str(tmp_path)])
    out = capsys.readouterr().out
    assert (code, "FOUND" in out) == ((1, True) if found else (0, False))
    assert (found or "nothing wrong was found") in out


def test_json_is_read_as_training_and_evaluation_read_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    toy_dataset.build(tmp_path, count=2, without=("iscrowd", "area"))
    path = tmp_path / "instances.json"
    files = {"json_file": str(path), "evaluator_type": "coco"}
    register(NAME, lambda: load_coco_json(str(path), str(tmp_path / "images"), NAME), **files)
    assert main([NAME, "--root", str(tmp_path)]) == 0
    content = json.loads(path.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 99, "segmentation": []})
    path.write_text(json.dumps(content))
    assert main([NAME, "--root", str(tmp_path)]) == 0
    assert "most segments in an image: 3 " in capsys.readouterr().out  # an empty mask is no object
    content["annotations"][2]["area"] = "12"
    path.write_text(json.dumps(content))
    assert main([NAME, "--root", str(tmp_path)]) == 2
    assert f"Annotation 2 of {path} (id 3, image 1) has area '12'" in capsys.readouterr().err
