"""What the last step of a training needs is missed before the first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_dataset
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from maskformer.config import load_config
from maskformer.config.own_datasets import read_own_datasets
from maskformer.data.datasets.own import register_own
from maskformer.engine import Trainer
from maskformer.structures import InputError


class NeverTrained(Trainer):
    """A trainer whose model cannot make a step."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return nn.Linear(1, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    toy_dataset.build(tmp_path, count=2)
    yield tmp_path
    for name in {"toy_train", "toy_val"} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(folder: Path, kind: str, *options: Any) -> CfgNode:
    """Of a training on drawn rectangles, which are registered; ``options``: keys and values."""
    images = {"images": str(folder / "images")}
    truth = {
        "instance": {"instances": str(folder / "instances.json")},
        "panoptic": {"panoptic": str(folder / "panoptic.json"), "panoptic_masks": str(folder / "panoptic")},
        "semantic": {"labels": str(folder / "labels")},
    }[kind]
    names = list(toy_dataset.NAMES)
    block: dict[str, Any] = {"classes": names, "ids": [1, 2, 3], "things": names[1:]}
    if kind == "instance":
        block = {"classes": names[1:], "ids": [2, 3]}
    elif kind == "semantic":
        block = {"classes": names}
    split = {**images, **truth}
    register_own(read_own_datasets({"toy": {**block, "train": split, "val": split}}))
    words = ["DATASETS.TRAIN", "('toy_train',)", "DATASETS.TEST", "('toy_val',)", "DATALOADER.NUM_WORKERS", "0"]
    words += ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(len(block["classes"]))]
    words += ["INPUT.DATASET_MAPPER_NAME", f"mask_former_{kind}", "SOLVER.IMS_PER_BATCH", "2"]
    words += ["OUTPUT_DIR", str(folder / "output"), "INPUT.CROP.ENABLED", "False"]
    for switch in ("SEMANTIC", "PANOPTIC", "INSTANCE"):
        words += [f"MODEL.MASK_FORMER.TEST.{switch}_ON", "True"]
    return load_config("", [*words, *map(str, options)])


@pytest.mark.parametrize("kind", ["instance", "panoptic", "semantic"])
def test_good_datasets_are_accepted(folder: Path, kind: str):
    NeverTrained(config(folder, kind))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["DATASETS.TEST", "('toy_vall',)"], "'toy_vall' is not registered; close to it are .*toy_val"),
        (["DATASETS.TEST", "('toy_val', 'toy_vall')"], "'toy_vall' is not registered"),
        (["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False"], "cannot judge any result .*SEMANTIC_ON"),
        (["TEST.AUG.ENABLED", "True"], "META_ARCHITECTURE is Linear.* TEST.AUG.ENABLED"),
        (["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()"], r"TEST.AUG.MIN_SIZES is \(\)"),
    ],
)
def test_mistake_in_the_configuration(folder: Path, options: list[str], message: str):
    with pytest.raises(InputError, match=message):
        NeverTrained(config(folder, "semantic", *options))


def other_test_json(folder: Path, kind: str, change: Any) -> CfgNode:
    """Test on a JSON of its own, in which the truth of the second image is changed."""
    cfg = config(folder, kind)
    name = {"instance": "json_file", "panoptic": "panoptic_json"}[kind]
    path = Path(MetadataCatalog.get("toy_val").get(name))
    records, metadata = DatasetCatalog.get("toy_val"), dict(MetadataCatalog.get("toy_val").as_dict())
    content = json.loads(path.read_text())
    change(content["annotations"][1])
    path.with_name("other.json").write_text(json.dumps(content))
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("toy_val")
    DatasetCatalog.register("toy_val", lambda: records)
    del metadata["own_key"]
    MetadataCatalog.get("toy_val").set(**{**metadata, name: str(path.with_name("other.json"))})
    return cfg


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("instance", lambda entry: entry.update(area="9"), r"other\.json .* has area '9'"),
        ("instance", lambda entry: entry.pop("segmentation"), r"other\.json .* has no mask"),
        ("panoptic", lambda entry: entry.pop("image_id"), r"other\.json has image_id None"),
        ("panoptic", lambda entry: entry.update(image_id=7), r"other\.json has no annotation of image 2"),
        ("panoptic", lambda entry: entry["segments_info"][0].update(category_id=8), r"other\.json .* category_id 8"),
    ],
)
def test_mistake_in_the_truth(folder: Path, kind: str, change: Any, message: str):
    with pytest.raises(InputError, match=message):
        NeverTrained(other_test_json(folder, kind, change))


@pytest.mark.parametrize(("kind", "lost"), [("panoptic", "panoptic/001.png"), ("instance", "images/001.png")])
def test_file_that_is_not_there(folder: Path, kind: str, lost: str):
    cfg = config(folder, kind)
    (folder / lost).rename(folder / "elsewhere.png")
    with pytest.raises(InputError, match=rf"{lost}.* does not exist"):
        NeverTrained(cfg)


def test_evaluation_alone_looks_at_all_datasets_before_the_first(folder: Path):
    cfg = config(folder, "semantic", "DATASETS.TEST", "('toy_val', 'toy_vall')")
    with pytest.raises(InputError, match="'toy_vall' is not registered"):
        NeverTrained.test(cfg, nn.Linear(1, 1))  # which could not segment the first
