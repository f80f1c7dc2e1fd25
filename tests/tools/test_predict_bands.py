"""Pictures of several bands, or of 16 bits: whatever predicts reads them as the training of its configuration did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

import maskformer
from maskformer.config import load_config
from maskformer.data import build_mapper
from maskformer.engine.setup import register_datasets
from maskformer.structures import BadImageError, Bands
from maskformer.tools import predict
from tests.tiny_model import REPOSITORY, TINY_OPTIONS

OPTIONS = [*TINY_OPTIONS, "INPUT.MIN_SIZE_TEST", "64", "MODEL.WEIGHTS", ""]
BANDS = np.arange(64 * 80 * 5, dtype=np.uint16).reshape(64, 80, 5) % 3001


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Path]:
    """A configuration whose own dataset has five bands of 0..3000, and weights of its model beside it."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        tifffile.imwrite(tmp_path / split / "a 1.TIF", BANDS, photometric="minisblack", planarconfig="contig")
        Image.fromarray(np.zeros((64, 80), np.uint8)).save(tmp_path / split / "a 1_mask.png")
    block = {"classes": ["crop", "soil"], "label_suffix": "_mask.png", "range": [0, 3000]}
    block["train"] = {"images": "train", "labels": "train", "bands": [1, 2, 3]}
    block["val"] = {"images": "val", "labels": "val", "bands": [4, 3, 2]}
    datasets = {"OWN": {"field": block}, "TRAIN": ["field_train"], "TEST": ["field_val"]}
    base = str(REPOSITORY / "configs/ade20k-150/maskformer_R50_bs16_160k.yaml")
    (tmp_path / "field.yaml").write_text(yaml.safe_dump({"_BASE_": base, "DATASETS": datasets}))
    cfg = load_config(str(tmp_path / "field.yaml"), OPTIONS)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    yield tmp_path
    for name in [name for name in DatasetCatalog.list() if MetadataCatalog.get(name).get("own_key")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def as_read(numbers: list[int]) -> np.ndarray:
    return (BANDS[..., [number - 1 for number in numbers]].astype(np.float32) * (255 / 3000)).round().astype(np.uint8)


def test_python_reads_files_as_the_dataset_of_test_says_else_of_train(field: Path):
    predictor = maskformer.load(field / "field.yaml", field / "model.pth", **keys_of(OPTIONS))
    result = predictor(field / "val/a 1.TIF")
    np.testing.assert_array_equal(result.image, as_read([4, 3, 2]))
    np.testing.assert_array_equal(result.label_map, predictor(as_read([4, 3, 2])).label_map)
    without_test = {**keys_of(OPTIONS), "DATASETS__TEST": ()}
    other = maskformer.load(field / "field.yaml", field / "model.pth", **without_test)
    np.testing.assert_array_equal(other(field / "val/a 1.TIF").image, as_read([1, 2, 3]))


def keys_of(options: list[str]) -> dict[str, str]:
    pairs = zip(options[::2], options[1::2], strict=True)
    return {key.replace(".", "__"): value for key, value in pairs if key != "MODEL.WEIGHTS"}


def test_a_folder_that_was_saved_keeps_how_pictures_are_read(field: Path):
    predictor = maskformer.load(field / "field.yaml", field / "model.pth", **keys_of(OPTIONS))
    predictor.save_pretrained(field / "saved")
    assert maskformer.load(field / "saved", device="cpu").bands == Bands((4, 3, 2), (0.0, 3000.0))


def test_plain_pictures_that_lack_the_bands_are_refused(field: Path):
    Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(field / "plain.jpg")
    predictor = maskformer.load(field / "field.yaml", field / "model.pth", **keys_of(OPTIONS))
    with pytest.raises(BadImageError, match=r"plain\.jpg.* 3 bands, but band 4"):
        predictor(field / "plain.jpg")


def test_the_command_draws_what_training_read(field: Path):
    assert run(field, "--output", str(field / "drawn.png")) == 0
    drawn = np.asarray(Image.open(field / "drawn.png"))
    assert drawn.shape == (64, 80, 3)
    predictor = maskformer.load(field / "field.yaml", field / "model.pth", **keys_of(OPTIONS))
    expected = predictor(field / "val/a 1.TIF", task="semantic")
    np.testing.assert_array_equal(np.asarray(Image.open(field / "drawn_ids.png")), expected.label_map)


def run(field: Path, *arguments: str) -> int:
    fixed = ["--config-file", str(field / "field.yaml"), "--weights", str(field / "model.pth")]
    return predict.main([*fixed, "--input", str(field / "val/a 1.TIF"), *arguments, *OPTIONS[:-2]])


def test_a_dataset_of_results_is_trained_on_with_the_same_bands(field: Path):
    assert run(field, "--as-dataset", "--output", str(field / "round2")) == 0
    content = yaml.safe_load((field / "round2/dataset.yaml").read_text())
    assert content["DATASETS"]["OWN"]["round2"]["bands"] == [4, 3, 2]
    cfg = load_config(str(field / "round2/dataset.yaml"), [*OPTIONS, "INPUT.MIN_SIZE_TEST", "64"])
    register_datasets(cfg)
    (record,) = DatasetCatalog.get("round2_train")
    example = build_mapper(cfg, is_train=False)(record)
    np.testing.assert_array_equal(example["image"].numpy().transpose(1, 2, 0), as_read([4, 3, 2]))
    assert json.loads(next((field / "round2/results").glob("*.json")).read_text())["is_kept"]
