from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskformer.data.datasets.preparation import ade20k, ade20k_full, coco_stuff_10k
from maskformer.data.datasets.preparation.files import (
    Job,
    find_files,
    pair_files,
    read_list,
    run_and_merge,
    run_jobs,
    write_image,
    write_json,
)
from maskformer.data.files.masks import encode_segments
from maskformer.structures import InputError

SCRIPTS = Path(__file__).resolve().parents[3] / "datasets"
ADE = "ADEChallengeData2016"


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """A function (script, root, *options) that runs a script and returns what it printed."""

    def run(script: str, root: Path, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, "--root", str(root), *options])
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def copy_raw(source: Path, target: Path) -> Path:
    """Copy a dataset without what the scripts make of it."""
    made = shutil.ignore_patterns("*_detectron2", "ade20k_panoptic*", "ade20k_instance*")
    shutil.copytree(source, target, ignore=made, copy_function=shutil.copyfile)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    return target


def same_arrays(made: Path, reference: Path, pattern: str) -> int:
    files = sorted(reference.rglob(pattern))
    for file in files:
        array = pixels(made / file.relative_to(reference))
        assert array.dtype == pixels(file).dtype and np.array_equal(array, pixels(file)), file
    return len(files)


# --- real samples: equal to what the released preparation made ---


@pytest.mark.samples
def test_ade20k_semantic_labels_are_the_prepared_ones(samples_root: Path, tmp_path: Path, prepare: Callable) -> None:
    folder = copy_raw(samples_root / ADE, tmp_path / ADE)
    printed = prepare("prepare_ade20k_sem_seg.py", tmp_path)
    made = folder / "annotations_detectron2"
    assert same_arrays(made, samples_root / ADE / "annotations_detectron2", "*.png") == 5
    assert f"{made / 'validation'}: 3 labels, 3 written, 0 were there" in printed


@pytest.mark.samples
def test_ade20k_panoptic_labels_are_the_prepared_ones_up_to_ids(
    samples_root: Path, tmp_path: Path, prepare: Callable
) -> None:
    folder = copy_raw(samples_root / ADE, tmp_path / ADE)
    prepare("prepare_ade20k_pan_seg.py", tmp_path)
    counts = []
    for split in ("train", "val"):
        name = f"ade20k_panoptic_{split}"
        made, reference = (json.loads((path / f"{name}.json").read_text()) for path in (folder, samples_root / ADE))
        assert made["images"] == reference["images"]
        for ours, theirs in zip(made["categories"], reference["categories"], strict=True):
            assert {**ours, "color": 0} == {**theirs, "color": 0}
        for ours, theirs in zip(made["annotations"], reference["annotations"], strict=True):
            png = theirs["file_name"]
            assert (ours["image_id"], ours["file_name"]) == (theirs["image_id"], png)
            ids, their_ids = (read_ids(path / name / png) for path in (folder, samples_root / ADE))
            pairs = np.unique(np.stack([ids.ravel(), their_ids.ravel()]), axis=1).T
            assert len(pairs) == len(np.unique(ids)) == len(np.unique(their_ids))  # one id of theirs for each of ours
            renamed = dict(pairs.tolist())
            counts.append(len(ours["segments_info"]))
            by_id = {segment["id"]: segment for segment in theirs["segments_info"]}
            assert len(by_id) == counts[-1]
            for segment in ours["segments_info"]:
                assert {**segment, "id": renamed[segment["id"]]} == by_id[renamed[segment["id"]]]
    assert sum(counts) == 131
    assert not list(folder.glob(".*"))


def read_ids(path: Path) -> np.ndarray:
    return pixels(path).astype(int) @ [1, 256, 65536]


@pytest.mark.samples
def test_ade20k_instances_are_the_pixels_of_the_instance_maps(
    samples_root: Path, tmp_path: Path, prepare: Callable
) -> None:
    import pycocotools.mask as rle

    folder = copy_raw(samples_root / ADE, tmp_path / ADE)
    prepare("prepare_ade20k_ins_seg.py", tmp_path)
    content = json.loads((folder / "ade20k_instance_train.json").read_text())
    assert len(content["categories"]) == 100 and content["categories"][0]["name"] == "bed"
    assert [a["id"] for a in content["annotations"]] == list(range(1, 92))  # 73 and 18 instances
    panoptic = json.loads((samples_root / ADE / "ade20k_panoptic_train.json").read_text())
    things = {c["id"] for c in content["categories"]}
    for image, reference in zip(content["images"], panoptic["annotations"], strict=True):
        ours = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        theirs = [s for s in reference["segments_info"] if s["category_id"] in things]
        key = ("category_id", "area", "bbox")
        assert sorted([a[k] for k in key] for a in ours) == sorted([s[k] for k in key] for s in theirs)
        colours = pixels(folder / "annotations_instance" / "training" / f"{image['id']}.png")
        drawn = sum(rle.decode(annotation["segmentation"]).astype(int) for annotation in ours)
        assert np.array_equal(drawn, colours[..., 1] > 0)


@pytest.mark.samples
def test_ade20k_full_images_and_labels_are_the_prepared_ones(
    samples_root: Path, tmp_path: Path, prepare: Callable
) -> None:
    source = samples_root / "ADE20K_2021_17_01"
    folder = copy_raw(source, tmp_path / source.name)
    raw = folder / "images" / "ADE"
    (raw / "validation").mkdir()
    for ending in (".jpg", "_seg.png"):
        name = f"ADE_train_00016964{ending}"
        shutil.copy(raw / "training" / "urban" / "street" / name, raw / "validation" / name)
    prepare("prepare_ade20k_full_sem_seg.py", tmp_path)
    for kind, pattern in (("annotations_detectron2", "*.tif"), ("images_detectron2", "*.jpg")):
        assert same_arrays(folder / kind / "training", source / kind / "training", pattern) == 2
    labels = pixels(folder / "annotations_detectron2" / "validation" / "ADE_train_00016964.tif")
    assert labels.dtype == np.uint16 and labels.shape == (512, 768)


@pytest.mark.samples
def test_coco_stuff_labels_are_the_prepared_ones(samples_root: Path, tmp_path: Path, prepare: Callable) -> None:
    source = samples_root / "coco" / "coco_stuff_10k"
    folder = copy_raw(source, tmp_path / "coco" / "coco_stuff_10k")
    printed = prepare("prepare_coco_stuff_10k_v1.0_sem_seg.py", tmp_path)
    assert "5 labels, 5 written" in printed and "4 labels, 4 written" in printed
    made = folder / "annotations_detectron2"
    assert same_arrays(made, source / "annotations_detectron2", "*.png") == 9
    assert same_arrays(folder / "images_detectron2", source / "images_detectron2", "*.jpg") == 9
    assert "5 labels, 0 written, 5 were there" in prepare("prepare_coco_stuff_10k_v1.0_sem_seg.py", tmp_path)


# --- pure functions, by hand ---


def test_run_lengths_are_those_of_pycocotools() -> None:
    import pycocotools.mask as rle

    id_map = np.random.default_rng(0).integers(0, 4, (7, 5)) * 1000
    id_map[0, 0] = 3000  # a run from the first pixel
    for segment_id, mask in encode_segments(id_map, [0, 1000, 3000]).items():
        expected = rle.encode(np.asfortranarray(id_map == segment_id, dtype=np.uint8))
        assert mask == {"size": [7, 5], "counts": expected["counts"].decode()}


def test_segments_are_instances_and_stuff_and_a_thing_without_instance_is_void() -> None:
    labels = np.array([[0, 1, 1], [8, 8, 9]], dtype=np.uint8)  # unlabelled, wall; bed, window
    instances = np.zeros((2, 3, 2), dtype=np.uint8)
    instances[1, 0] = 1, 7  # the seventh instance is a bed
    instances[0, 2] = 2, 8  # a window over a pixel that the other file calls wall
    merged = ade20k.merge_labels(labels, instances)
    assert merged.tolist() == [[0, 1000, 9008], [8007, 0, 0]]
    assert [(s["id"], s["category_id"], s["area"], s["bbox"]) for s in ade20k.list_segments(merged)] == [
        (1000, 0, 1, [1, 0, 1, 1]),
        (8007, 7, 1, [0, 1, 1, 1]),
        (9008, 8, 1, [2, 0, 1, 1]),
    ]


def test_full_class_is_red_tens_and_green() -> None:
    colours = np.array([[[119, 162, 9], [0, 0, 0], [0, 165, 1]]], dtype=np.uint8)  # wall is 2978 = 11 x 256 + 162
    assert ade20k_full.decode_classes(colours).tolist() == [[0, 65535, 7]]
    assert ade20k_full.limit_short_side(2200, 1467) == (768, 512)
    assert ade20k_full.limit_short_side(300, 200) == (300, 200)


def test_matlab_files_of_both_versions_are_read(tmp_path: Path) -> None:
    from scipy.io import savemat

    file = tmp_path / "a.mat"
    label_map = np.array([[1, 2], [172, 3], [2, 2]], dtype=np.uint16)
    savemat(file, {"S": label_map})
    assert coco_stuff_10k.read_matlab(file).tolist() == label_map.tolist()
    assert coco_stuff_10k.shift_labels(label_map, file).tolist() == [[255, 0], [170, 1], [0, 0]]
    with pytest.raises(InputError, match=r"a\.mat holds 1\.\.182; expected 1\.\.172"):
        coco_stuff_10k.shift_labels(np.array([[1, 182]]), file)
    file.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"a\.mat cannot be read"):
        coco_stuff_10k.read_matlab(file)


# --- the file loop ---


def touch_twice(job: Job) -> None:
    if job.sources[0].name == "bad":
        raise InputError("bad is bad")
    for target in job.targets:
        write_json({"image": {"id": job.sources[0].stem}, "process": os.getpid()}, target)


def make_jobs(folder: Path, count: int) -> list[Job]:
    return [Job((Path(f"{i}"),), (folder / f"{i}.txt", folder / "parts" / f"{i}.json")) for i in range(count)]


@pytest.mark.slow
def test_jobs_run_in_several_processes_and_those_done_are_kept(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 40)
    touched = tmp_path / "parts" / "0.json"
    assert run_jobs(touch_twice, jobs[:1], workers=1, title="") == "1 written, 0 were there"
    first = touched.read_text()
    assert run_jobs(touch_twice, jobs, workers=2, title="") == "39 written, 1 were there"
    processes = {json.loads(job.targets[0].read_text())["process"] for job in jobs[1:]}
    assert len(processes) == 2 and os.getpid() not in processes
    assert touched.read_text() == first
    assert run_jobs(touch_twice, jobs[:2], workers=1, title="", redo=True) == "2 written, 0 were there"


def test_run_goes_on_after_an_interruption_and_merges_all(tmp_path: Path) -> None:
    def merge(entries: list[Any]) -> dict[str, Any]:
        return {"images": [entry["image"] for entry in entries]}

    jobs = make_jobs(tmp_path, 3)
    target = tmp_path / "all.json"
    broken = [jobs[0], Job((Path("bad"),), (tmp_path / "bad.txt",)), *jobs[1:]]
    with pytest.raises(InputError, match="bad is bad"):
        run_and_merge(touch_twice, merge, broken, target, workers=1, title="")
    assert not target.exists() and jobs[0].is_done and not jobs[1].is_done
    counts = run_and_merge(touch_twice, merge, jobs, target, workers=1, title="")
    assert counts == "2 written, 1 were there"
    assert json.loads(target.read_text()) == {"images": [{"id": "0"}, {"id": "1"}, {"id": "2"}]}
    assert not (tmp_path / "parts").exists()
    assert run_and_merge(touch_twice, merge, jobs, target, workers=1, title="") == "0 written, 3 were there"
    more = [*jobs, *make_jobs(tmp_path, 4)[3:]]  # an image came: its entry is missing
    assert run_and_merge(touch_twice, merge, more, target, workers=1, title="") == "4 written, 0 were there"


def test_file_half_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, file: Path, format: str) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(np.zeros((2, 2), dtype=np.uint8), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_image_without_label_and_label_without_image_are_named(tmp_path: Path) -> None:
    a, b = {"a": tmp_path / "a.jpg"}, {"a": tmp_path / "a.png", "b": tmp_path / "b.png"}
    assert pair_files(a, {"a": b["a"]}, "labels") == [(a["a"], b["a"])]
    with pytest.raises(InputError, match=r"1 of 2 labels have no image, first .*b\.png"):
        pair_files(a, b, "labels")
    with pytest.raises(InputError, match=r"1 of 1 images have no labels, first .*a\.jpg"):
        pair_files(a, {}, "labels")
    with pytest.raises(InputError, match="no images and no labels: set DETECTRON2_DATASETS or --root"):
        pair_files({}, find_files(tmp_path, "*.png"), "labels")
    with pytest.raises(InputError, match=r"train\.txt is missing or empty"):
        read_list(tmp_path / "train.txt")


def test_mistake_ends_in_one_sentence(write_png: Callable[[str, Any], str], tmp_path: Path, prepare: Callable) -> None:
    with pytest.raises(SystemExit, match=r"no images and no labels in .*annotations/training"):
        prepare("prepare_ade20k_sem_seg.py", tmp_path)
    label = write_png(f"{ADE}/annotations/training/a.png", [[151]])
    write_png(f"{ADE}/images/training/a.jpg", [[0]])
    with pytest.raises(SystemExit, match=f"{label} is no ADE20K label: it holds 151"):
        prepare("prepare_ade20k_sem_seg.py", tmp_path)
    write_png(f"{ADE}/annotations/training/a.png", [[150]])
    write_png(f"{ADE}/annotations_instance/training/a.png", [[[101, 1, 0]]])
    with pytest.raises(SystemExit, match=r"a\.png holds the category 101"):
        prepare("prepare_ade20k_pan_seg.py", tmp_path)


@pytest.mark.samples
def test_panoptic_model_is_measured_on_the_prepared_instances(
    samples_root: Path, tmp_path: Path, prepare: Callable
) -> None:
    import torch
    from detectron2.data import DatasetCatalog
    from detectron2.structures import Boxes, Instances

    from maskformer.config import load_config
    from maskformer.data.datasets.ade20k import register_ade20k
    from maskformer.evaluation import build_evaluator

    copy_raw(samples_root / ADE, tmp_path / ADE)
    for script in ("prepare_ade20k_sem_seg.py", "prepare_ade20k_pan_seg.py", "prepare_ade20k_ins_seg.py"):
        prepare(script, tmp_path)
    register_ade20k(tmp_path)
    cfg = load_config("")
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    evaluator = build_evaluator(cfg, "ade20k_panoptic_val")
    evaluator.reset()
    for record in DatasetCatalog.get("ade20k_panoptic_val"):
        ids = torch.as_tensor(read_ids(Path(record["pan_seg_file_name"])).astype(np.int32))
        segments = [{key: s[key] for key in ("id", "isthing", "category_id")} for s in record["segments_info"]]
        things = [segment for segment in segments if segment["isthing"]]
        instances = Instances(
            tuple(ids.shape),
            pred_masks=torch.stack([ids == thing["id"] for thing in things] or [ids < 0])[: len(things)],
            pred_classes=torch.tensor([thing["category_id"] for thing in things], dtype=torch.int64),
            scores=torch.ones(len(things)),
            pred_boxes=Boxes(torch.zeros(len(things), 4)),
        )
        evaluator.process([record], [{"panoptic_seg": (ids, segments), "instances": instances}])
    results = evaluator.evaluate()
    assert results["segm"]["AP"] == pytest.approx(100) and results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert len(DatasetCatalog.get("ade20k_instance_val")[0]["annotations"]) == 12
    register_ade20k("datasets")


def save_picture(values: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


def test_everyday_pictures_come_from_what_is_there(tmp_path: Path, prepare: Callable):
    picture = np.zeros((1, 4, 3), np.uint8)
    segments = [{"id": 5, "category_id": 1}, {"id": 256, "category_id": 187}, {"id": 7, "category_id": 44}]
    categories = [{"id": 1, "name": "person"}, {"id": 187, "name": "sky-other-merged"}, {"id": 44, "name": "bottle"}]
    for split, ade in (("train", "training"), ("val", "validation")):
        coco = tmp_path / "coco"
        save_picture(picture, coco / f"{split}2017" / "1.jpg")
        save_picture([[[5, 0, 0], [0, 1, 0], [7, 0, 0], [0, 0, 0]]], coco / f"panoptic_{split}2017" / "1.png")
        entry = {"file_name": "1.png", "segments_info": segments}
        (coco / "annotations").mkdir(exist_ok=True)
        write_json(
            {"categories": categories, "annotations": [entry]}, coco / "annotations" / f"panoptic_{split}2017.json"
        )
        save_picture(picture, tmp_path / ADE / "images" / ade / "2.jpg")
        save_picture([[0, 3, 7, 150]], tmp_path / ADE / "annotations" / ade / "2.png")  # none, sky, road, flag
    prepare("prepare_everyday.py", tmp_path)
    found = {path.name: pixels(path).tolist() for path in (tmp_path / "everyday" / "train" / "labels").iterdir()}
    assert found == {"1.png": [[0, 7, 255, 255]], "2.png": [[255, 7, 5, 255]]}
    assert len(list((tmp_path / "everyday" / "val" / "images").iterdir())) == 2


def test_everyday_pictures_that_are_nowhere_are_one_sentence(tmp_path: Path, prepare: Callable):
    with pytest.raises(SystemExit, match=str(tmp_path)):
        prepare("prepare_everyday.py", tmp_path)
