"""The command line of import_dataset: from an archive to a training step, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from PIL import Image

from maskformer.config import load_config
from maskformer.engine import Trainer
from maskformer.engine.setup import register_datasets
from maskformer.tools import import_dataset

Run = Callable[..., int]
TINY = {
    "MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16, "MODEL.RESNETS.WIDTH_PER_GROUP": 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16, "MODEL.MASK_FORMER.HIDDEN_DIM": 32, "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32, "MODEL.MASK_FORMER.DEC_LAYERS": 1, "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_WORKERS": 0,
}  # fmt: skip


def write_yolo(folder: Path, number: int = 10) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text("train: images\nnames: [pond, 'path\\n2']\n")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for index in range(number):
        Image.fromarray(pixels).save(folder / f"images/{index}.png")
        (folder / f"labels/{index}.txt").write_text(f"{index % 2} 0.2 0.2 0.8 0.2 0.8 0.8 0.2 0.8\n")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Imports ``tmp_path/source`` as ``tmp_path/my garden``."""
    write_yolo(tmp_path / "source")

    def run_import(*options: object, source: str = "source", target: str = "my garden") -> int:
        words = ["--from", "yolo-seg", tmp_path / source, tmp_path / target, *options]
        return import_dataset.main(list(map(str, words)))

    before = set(DatasetCatalog.list())
    yield run_import
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("form", ["instances", "labels"])
def test_dataset_trains_after_it_was_moved_and_its_source_removed(run: Run, tmp_path: Path, form: str) -> None:
    assert run("--as", form) == 0
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "my garden").rename(tmp_path / "elsewhere" / "x")
    words = [str(word) for pair in {**TINY, "OUTPUT_DIR": tmp_path / "out"}.items() for word in pair]
    words += ["INPUT.CROP.SIZE", "(64,64)", "INPUT.SIZE_DIVISIBILITY", "64"] if form == "labels" else []
    cfg = load_config(str(tmp_path / "elsewhere/x/dataset.yaml"), words)
    assert cfg.DATASETS.TRAIN == ("my_garden_train",) and cfg.DATASETS.TEST == ("my_garden_val",)
    register_datasets(cfg)
    trainer = Trainer(cfg)
    with EventStorage() as storage:
        trainer.storage, trainer.iter = storage, 0
        trainer.run_step()
        assert storage.latest()["total_loss"][0] > 0
    assert (2 if form == "instances" else 3) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


def test_share_of_validation_is_the_same_each_time(run: Run, tmp_path: Path) -> None:
    shares = {}
    for target, share in (("a", 0.3), ("b", 0.3), ("c", 0), ("d", 0.01)):
        assert run("--val-share", share, target=target) == 0
        folder = tmp_path / target / "images" / "val"
        shares[target] = sorted(os.listdir(folder)) if folder.exists() else []
    assert shares["a"] == shares["b"] and [len(names) for names in shares.values()] == [3, 3, 0, 1]
    content = load_config(str(tmp_path / "c/dataset.yaml"))
    assert (content.DATASETS.TRAIN, content.DATASETS.TEST) == (("c_train",), ())


def test_pictures_take_no_room_where_links_are_possible(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--val-share", 0)
    name = "images/train/3.png"
    assert (tmp_path / "my garden" / name).samefile(tmp_path / "source/images/3.png")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError()))
    run("--val-share", 0, target="copied")
    copy = tmp_path / "copied" / name
    assert not copy.is_symlink() and not copy.samefile(tmp_path / "source/images/3.png")
    assert copy.read_bytes() == (tmp_path / "source/images/3.png").read_bytes()


def test_archive_is_read_and_hostile_ones_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        for path in (tmp_path / "source").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "source"))
        archive.writestr("../../outside.txt", "x")
        archive.writestr("__MACOSX/images/._1.png", "x")
        archive.writestr("images/._1.png", "x")
    assert run(source="good.zip", target="from zip") == 0
    assert not (tmp_path.parent / "outside.txt").exists() and not (tmp_path / "outside.txt").exists()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.png", bytes(50_000_000))
    (tmp_path / "none.zip").write_bytes(b"PK no archive")
    capsys.readouterr()
    for name in ("bomb.zip", "none.zip"):
        assert run(source=name, target="no") == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (("--val-share", 1), "--val-share"),
        (("--base", "missing.yaml"), "missing.yaml"),
        ((), "TARGET"),
    ],
)
def test_mistakes_end_in_one_sentence_and_leave_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple, fact: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").write_text("")
    assert run(*options, target="full" if fact == "TARGET" else "new") == 2
    (line,) = re.findall(r"^error: .*$", capsys.readouterr().err, re.MULTILINE)
    assert fact in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "source"]


def test_source_that_is_not_there_or_empty(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for program in import_dataset.READERS:
        for source in ("nowhere", "empty", "empty/a.json"):
            words = ["--from", program, str(tmp_path / source), str(tmp_path / "out")]
            assert import_dataset.main(words) == 2, (program, source)
    assert "Traceback" not in capsys.readouterr().err


def test_names_of_classes_are_printable_and_options_kept(run: Run, tmp_path: Path) -> None:
    assert run("--name", "2024 ä/b", "--base", "configs/coco-instance/maskformer_instance_R50_bs64_554k.yaml") == 0
    cfg = load_config(str(tmp_path / "my garden/dataset.yaml"))
    assert cfg.DATASETS.TRAIN == ("2024_b_train",)
    assert cfg.DATASETS.OWN["2024_b"].classes == ["pond", "path\\n2"]
    content = json.loads((tmp_path / "my garden/train.json").read_text())
    assert [each["name"] for each in content["categories"]] == ["pond", "path\\n2"]
    assert torch.tensor([each["area"] for each in content["annotations"]]).unique().tolist() == [48 * 36]


def test_coco_needs_no_import_and_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cvat/annotations").mkdir(parents=True)
    (tmp_path / "cvat/annotations/instances_default.json").write_text(
        '{"images": [], "annotations": [], "categories": []}'
    )
    for program in ("cvat-xml", "labelme", "yolo-seg"):
        assert import_dataset.main(["--from", program, str(tmp_path / "cvat"), str(tmp_path / "new")]) == 2
        said = capsys.readouterr().err
        assert "instances_default.json is a COCO JSON" in said and "DATASETS.OWN" in said
    assert not (tmp_path / "new").exists()
