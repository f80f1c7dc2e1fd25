"""predict --as-dataset: what it writes is a dataset that training reads, with the values that the model predicts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as rle

from maskformer.config import load_config
from maskformer.data.mappers.table import build_mapper
from maskformer.engine.setup import register_datasets
from maskformer.predictor import Predictor
from maskformer.reports import media
from maskformer.tools import predict

Run = Callable[..., int]
TRAINING = ("MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", "(64,)")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, size in (("a.png", (64, 80)), ("b c.JPG", (48, 96))):
        coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)).save(folder / name)
    return folder


@pytest.fixture
def run(images: Path, shapes_config: str, tiny_options: list[str], tiny_weights: str) -> Run:
    def run_predict(*arguments: object, output: str = "my set") -> int:
        fixed = ["--config-file", shapes_config, "--weights", tiny_weights, "--input", str(images), "--as-dataset"]
        return predict.main([*fixed, "--output", str(images.parent / output), *map(str, arguments), *tiny_options])

    return run_predict


@pytest.fixture
def predictor(shapes_config: str, tiny_options: list[str], tiny_weights: str) -> Predictor:
    return Predictor.from_config(load_config(shapes_config, [*tiny_options, "MODEL.WEIGHTS", tiny_weights]))


@pytest.fixture
def read_back(images: Path, tiny_options: list[str]) -> Iterator[Callable[[], tuple[list[dict], Any]]]:
    """The records of the dataset, after its configuration was loaded and a model was trained on them for one step."""
    names: list[str] = []

    def read() -> tuple[list[dict], Any]:
        cfg = load_config(str(images.parent / "my set" / "dataset.yaml"), [*tiny_options, *TRAINING])
        register_datasets(cfg)
        names[:] = cfg.DATASETS.TRAIN
        records = DatasetCatalog.get(names[0])
        mapper = build_mapper(cfg, is_train=True)
        losses = build_model(cfg)([mapper(record) for record in records])
        total = sum(losses.values())
        total.backward()
        assert torch.isfinite(total)
        return records, MetadataCatalog.get(names[0])

    yield read
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_semantic_pixels_are_classes_above_the_threshold_and_others_are_ignored(
    run: Run, predictor: Predictor, images: Path, read_back: Callable
) -> None:
    scores = predictor(images / "a.png", task="semantic", threshold=0.5)["sem_seg"]
    best, classes = scores.max(dim=0)
    probs = best / scores.sum(dim=0).clamp(min=1)
    middle = probs.median().item()
    assert run("--task", "semantic", "--confidence-threshold", middle) == 0
    records, metadata = read_back()
    labels = np.asarray(Image.open(records[0]["sem_seg_file_name"]))
    np.testing.assert_array_equal(labels == 255, (probs <= middle).numpy())
    np.testing.assert_array_equal(labels[labels != 255], classes[probs > middle].numpy())
    assert metadata.ignore_label == 255
    assert next(iter(metadata.stuff_classes)) == "ball"
    assert Path(records[0]["file_name"]).read_bytes() == (images / "a.png").read_bytes()


def test_instances_have_the_masks_and_scores_that_exceed_the_threshold(
    run: Run, predictor: Predictor, images: Path, read_back: Callable
) -> None:
    expected = predictor(images / "a.png")["instances"]
    middle = (expected.scores[2] + expected.scores[3]).item() / 2
    assert run("--task", "instance", "--confidence-threshold", middle) == 0
    records, _ = read_back()
    annotations = next(r for r in records if r["file_name"].endswith("a.png"))["annotations"]
    content = json.loads((images.parent / "my set" / "instances.json").read_text())
    stored = [each for each in content["annotations"] if each["image_id"] == content["images"][0]["id"]]
    assert [each["score"] for each in stored] == pytest.approx(expected.scores[:3].tolist())
    assert [each["category_id"] for each in annotations] == expected.pred_classes[:3].tolist()
    for each, mask in zip(annotations, expected.pred_masks, strict=False):
        np.testing.assert_array_equal(rle.decode(each["segmentation"]).astype(bool), mask.numpy())


def test_panoptic_segments_are_the_models(run: Run, predictor: Predictor, images: Path, read_back: Callable) -> None:
    expected, segments = predictor(images / "a.png")["panoptic_seg"]
    assert run("--confidence-threshold", 0) == 0
    records, metadata = read_back()
    ids = np.asarray(Image.open(records[0]["pan_seg_file_name"])).astype(int) @ [1, 256, 65536]
    np.testing.assert_array_equal(ids, expected.numpy())
    kinds = [(s["id"], s["category_id"], bool(s["isthing"])) for s in records[0]["segments_info"]]
    assert kinds == [(s["id"], s["category_id"], s["isthing"]) for s in segments]
    assert [s["area"] for s in records[0]["segments_info"]] == [int((expected == s["id"]).sum()) for s in segments]
    assert len(metadata.thing_dataset_id_to_contiguous_id) == 5


def test_picture_without_a_result_is_left_out(run: Run, predictor: Predictor, images: Path, read_back: Callable):
    best = {name: predictor(images / name)["instances"].scores.max().item() for name in os.listdir(images)}
    (low, high) = sorted(best, key=best.__getitem__)
    assert run("--task", "instance", "--confidence-threshold", (best[low] + best[high]) / 2) == 0
    assert [Path(record["file_name"]).name for record in read_back()[0]] == [high]
    assert os.listdir(images.parent / "my set" / "images") == [high]
    assert run("--task", "instance", "--confidence-threshold", 1, output="none") == 2


def test_resume_does_what_is_not_done_and_what_other_options_did(
    run: Run, images: Path, read_back: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, read_picture = [], media.read_picture
    monkeypatch.setattr(
        media, "read_picture", lambda path, bands: read.append(Path(path).name) or read_picture(path, bands)
    )
    folder = images.parent / "my set"
    assert run("--task", "semantic") == 0
    whole = {path: path.read_bytes() for path in folder.rglob("*.*")}
    for gone in ("results/a.json", "labels/a.png", "images/a.png"):
        (folder / gone).unlink()
        read.clear()
        assert run("--task", "semantic", "--resume") == 0
        assert read == ["a.png"]
        assert {path: path.read_bytes() for path in folder.rglob("*.*")} == whole
    assert run("--task", "semantic") == 2  # it would mix with what is there
    assert run("--task", "semantic", "--resume", "--confidence-threshold", 0.001) == 0
    assert read[1:] == ["a.png", "b c.JPG"]
    assert len(read_back()[0]) == 2


def test_what_is_no_dataset_is_refused(run: Run, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "clip.mp4").write_bytes(b"")
    assert run() == 2
    (images / "clip.mp4").unlink()
    assert "clip.mp4 is a video" in capsys.readouterr().err
    (images.parent / "file").write_text("")
    assert run(output="file") == 2
    assert "--output" in capsys.readouterr().err
    assert predict.main(["--config-file", "x", "--input", str(images), "--as-dataset"]) == 2
    assert "--output" in capsys.readouterr().err
    (images / "broken.png").write_bytes(b"")
    assert run("--task", "semantic") == 1
    assert "broken.png" in capsys.readouterr().err
