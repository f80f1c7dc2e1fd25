from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_dataset
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image

from maskformer.data.checks.inspection import Inspection
from maskformer.data.datasets.registration import register
from maskformer.reports.dataset_page import FOREIGN_COLOR, Checked, draw_label
from maskformer.structures import LabelValues
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
    assert "FOUND: Labels hold the value 3 in 2 of 2 files, 33.3 % of pixels" in out
    assert "expected 0..2 or 255 (ignored): labels are of another dataset or not prepared (datasets/README.md)" in out


def test_share_of_pixels_without_a_class_and_sizes_are_told(check: Callable) -> None:
    _, out = check([[[0, 0, 1], [0, 255, 255]], [[255, 255, 255]] * 2])
    assert "pixels without a class: 66.7 %" in out
    assert "size of images (width x height): 3 x 2 to 3 x 2, median 3 x 2" in out


def test_more_segments_than_queries_and_sizes_that_differ_are_found(check: Callable) -> None:
    code, out = check([[[0, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 1, 2]]], "--queries", "2")
    assert code == 1 and "1 of 2 images have more segments than the 2 queries" in out
    assert "1.png, 3: " in out and "NUM_OBJECT_QUERIES to 3 or more" in out
    code, out = check([[[0, 1, 2]]])
    assert code == 1 and "is 3 x 2 pixels (width x height) but its label" in out and "is 3 x 1" in out
    code, out = check([[[0, 1, 2], [0, 1, 2]]], height=9, width=3)
    assert code == 1 and "but its annotation says that it is 3 x 9" in out


def test_equal_problems_are_one_sentence_that_names_the_first_files(check: Callable) -> None:
    code, out = check([[[0, 1, 2]]] * 6 + [[[0, 1, 2]] * 2])
    (found,) = (line for line in out.splitlines() if line.startswith("FOUND"))
    assert code == 1 and "6 of 7 labels have another size" in found and "0.png" in found
    assert "1.png, 2.png, 3.png and 2 more" in found


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
    assert "cat  100.00 % of instances" in out
    assert "Labels hold the value 4 in 1 of 1 files, 33.3 % of instances" in out and "expected 0..1:" in out
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
    found = capsys.readouterr().out
    assert "Labels hold the value 7 in 1 of 2 files, 50.0 % of pixels" in found and "labels/b.png" in found
    assert (
        "expected 1..2 or 0 (ignored): " in found and "`ignore: 7`" in found and "DATASETS.OWN.checked_garden" in found
    )


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("MASK_FORMER: {NUM_OBJECT_QUERIES: 3}, SEM_SEG_HEAD: {NUM_CLASSES: 3}", "more segments than the 3 queries"),
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


MAP = np.zeros((48, 64), dtype=np.uint8)
MAP[4:24, 4:30], MAP[20:44, 36:60] = 1, 2
MASK = (MAP > 0).astype(np.uint8)
PALETTE = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], dtype=np.uint8)
THREE, TWO, ONE = ["grass", "path", "pond"], ["ground", "pond"], ["pond"]


def with_border(label_map: np.ndarray, value: int) -> np.ndarray:
    """A frame of three pixels."""
    framed = np.full_like(label_map, value)
    framed[3:-3, 3:-3] = label_map[3:-3, 3:-3]
    return framed


def as_jpeg(pixels: np.ndarray) -> np.ndarray:
    """What is left of a label that somebody saved as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=75)
    return np.asarray(Image.open(buffer))


def check_own(folder: Path, labels: list[np.ndarray | Image.Image], keys: str, *options: str) -> int:
    """The exit code for images and labels of a dataset that DATASETS.OWN describes."""
    for index, label in enumerate(labels):
        image = folder / "images" / f"{index}.jpg"
        label = label if isinstance(label, Image.Image) else Image.fromarray(label)
        for file in (image, folder / "labels" / f"{index}.png"):
            file.parent.mkdir(exist_ok=True)
        Image.new("RGB", label.size, (90, 120, index)).save(image)
        label.save(folder / "labels" / f"{index}.png")
    block = f"{{{keys}, train: {{images: images, labels: labels}}}}"
    (folder / "own.yaml").write_text(f"DATASETS: {{OWN: {{strange: {block}}}}}\n")
    return main(["strange_train", "--config-file", str(folder / "own.yaml"), *options])


@pytest.mark.parametrize(
    ("label", "classes", "expected"),
    [
        (with_border(MAP, 11), THREE, ["the value 11 in 3 of 3 files, 20.7 % of pixels", "`ignore: 11`?"]),
        (with_border(MAP, 3), THREE, ["`ignore: 3`, if 3 means no class", "`offset: 1` and `ignore: 0`"]),
        (MAP + 1, THREE, ["`offset: 1`"]),
        (MAP * 51, THREE, ["`ids: [0, 51, 102]`"]),
        (MAP.astype(np.uint16) * 257, THREE, ["`ids: [0, 257, 514]`"]),
        ((MAP + 1) * 80, THREE, ["`ids: [80, 160, 240]`"]),
        (np.array([0, 17, 200], dtype=np.uint8)[MAP], THREE, ["`ids: [0, 17, 200]`"]),
        (MASK * 255, ONE, ["`classes: [background, pond]` with `ids: [0, 255]`"]),
        (MASK * 255, TWO, ["`ids: [0, 255]`"]),
        (MASK, ONE, ["`classes: [background, pond]`"]),
        (with_border(MAP.astype(np.uint16) + 26001, 27001), THREE, ["26001, 26002, 26003, 27001", "1000 * class"]),
        (PALETTE[MAP], THREE, ["3 colours", "`colors: [[0, 0, 0], [0, 128, 0], [128, 0, 0]]`"]),
        (np.dstack([PALETTE[MAP], np.full_like(MAP, 255)]), THREE, ["`colors: [[0, 0, 0], [0, 128, 0], [128, 0, 0]]`"]),
        (Image.fromarray(MAP).convert("LA"), THREE, ["all channels are alike, so save one"]),
        (
            as_jpeg(PALETTE[MAP]),
            THREE,
            ["JPEG", "nearest neighbour", "`colors: [[0, 0, 0], [0, 13", "], [129, 0, 0]]`"],
        ),
        (as_jpeg(MASK * 255), TWO, ["JPEG", "nearest neighbour", "`ids: [0, 255]`"]),
        (Image.fromarray(MASK * 255).resize((320, 240), Image.Resampling.BICUBIC), TWO, ["JPEG", "`ids: [0, 255]`"]),
    ],
)
def test_labels_that_other_programs_write_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture, label: Any, classes: list[str], expected: list[str]
) -> None:
    assert check_own(tmp_path, [label] * 3, f"classes: [{', '.join(classes)}]") == 1
    out = capsys.readouterr().out
    assert [part for part in expected if part not in out] == []


@pytest.mark.parametrize("label", [MAP, Image.fromarray(MASK > 0), Image.fromarray(MAP).convert("P")])
def test_labels_that_are_right_raise_no_question(tmp_path: Path, label: Any) -> None:
    assert check_own(tmp_path, [label] * 2, "classes: [grass, path, pond]") == 0


def test_a_value_in_few_files_may_be_a_mistake_and_keeps_what_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert check_own(tmp_path, [with_border(MAP, 255)] * 3 + [with_border(MAP, 9)], "classes: [a, b, c]") == 1
    out = capsys.readouterr().out
    assert "the value 9 in 1 of 4 files" in out and "labels/3.png" in out and "`ignore: [255, 9]`" in out


def test_labels_by_colour_are_counted_and_unknown_colours_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    keys = "classes: [grass, path], colors: [[128, 0, 0], [0, 128, 0]]"
    labels = [PALETTE[MAP], PALETTE[np.minimum(MAP, 1)], Image.fromarray(MASK)]
    assert check_own(tmp_path, labels, f"{keys}, ignore: [[0, 0, 0]]", "--page", str(tmp_path / "page.html")) == 0
    out = capsys.readouterr().out
    areas = (MAP == 1).sum(), (MAP == 2).sum(), MASK.sum()
    paths = areas[1] + areas[2]  # grass: once MAP's 1, once all of MASK, and all that the third file has as 0
    grass = areas[0] + areas[2] + MASK.size - areas[2]
    assert f"grass  {100 * grass / (grass + paths):6.2f} % of pixels" in out and "nothing wrong was found" in out
    assert check_own(tmp_path, labels, keys, "--page", str(tmp_path / "page.html")) == 1
    out = capsys.readouterr().out
    assert (
        "Labels of 2 files" in out and "colours that are no class, 1 in all" in out and "`ignore: [[0, 0, 0]]`" in out
    )


def test_numbers_of_objects_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert check_own(tmp_path, [MASK, MAP, np.maximum(MAP, 3 * (MAP == 0).astype(np.uint8))], "classes: [person]") == 1
    out = capsys.readouterr().out
    assert "numbers of objects" in out and "`objects` in place of `labels`" in out


def test_photographs_are_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert check_own(tmp_path, [photograph], "classes: [a, b, c]") == 1
    assert "are images and labels swapped?" in capsys.readouterr().out


def test_images_of_the_training_in_the_evaluation_are_found(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, split in enumerate(("train", "val")):
        toy_dataset.build(tmp_path / split, count=3, seed=seed)
    shutil.copy(tmp_path / "train/images/000.png", tmp_path / "val/images/002.png")
    splits = ", ".join(f"{name}: {{images: {name}/images, labels: {name}/labels}}" for name in ("train", "val"))
    (tmp_path / "own.yaml").write_text(f"DATASETS: {{OWN: {{toy: {{classes: [a, b, c], {splits}}}}}}}\n")
    options = ["--config-file", str(tmp_path / "own.yaml")]
    assert main(["toy_train", *options]) == main(["toy_val", *options]) == 0
    assert main(["toy_train", "toy_val", *options]) == 1
    out = capsys.readouterr().out
    assert "1 of 3 images of toy_val are in toy_train too" in out and "val/images/002.png" in out


def test_page_shows_what_is_odd_in_a_browser(tmp_path: Path, open_page: Callable) -> None:
    page = tmp_path / "check.html"
    labels = [MAP, with_border(MAP, 11), np.full_like(MAP, 255), MAP[:20]]
    assert check_own(tmp_path, labels, 'classes: ["<script>alert(1)</script>", b, c]', "--page", str(page)) == 1
    (tmp_path / "images" / "0.jpg").unlink()  # the page has all that it needs
    browser = open_page(page)
    text = browser.find_element("tag name", "body").text
    assert "<script>alert(1)</script>" in text and "`" not in text
    assert [code.text for code in browser.find_elements("tag name", "code")][:1] == ["ignore: [255, 11]"]
    headings = [heading.text for heading in browser.find_elements("tag name", "h3")]
    assert headings[:4] == ["Problem 1", "Without annotation", "Most segments", "Smallest and largest"]
    pictures = browser.find_elements("css selector", "figure img")
    assert len(pictures) >= 8 and all(int(picture.get_property("naturalWidth")) > 1 for picture in pictures)
    assert page.stat().st_size < 400_000


def test_page_marks_foreign_values(tmp_path: Path) -> None:
    seen = Inspection(LabelValues((0, 1, 2), (255,)))
    Image.fromarray(with_border(MAP, 11)).save(tmp_path / "label.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "image.png")
    seen.add({"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "label.png")})
    drawn = draw_label(seen.sights[0], Checked("x", 1, THREE, Metadata(), seen, []))
    is_marked = (drawn == FOREIGN_COLOR).all(axis=2)
    assert drawn.shape == (315, 420, 3)
    assert is_marked[5].all() and is_marked[:, 5].all() and not is_marked[60:-60, 60:-60].any()


def test_page_that_cannot_be_written_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "none" / "check.html"
    assert check_own(tmp_path, [MAP], "classes: [a, b, c]", "--page", str(page)) == 2
    assert str(page) in capsys.readouterr().err and not page.parent.exists()
