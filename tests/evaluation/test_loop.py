"""What an evaluation is told by, and that one which is stopped goes on only with its own."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch import nn

from maskformer.config import load_config
from maskformer.data.datasets import register_all
from maskformer.demo.shapes import generate_shapes
from maskformer.engine.trainer import Trainer
from maskformer.evaluation.loop import WatchedLoader, fingerprint

NAME = "shapes_sem_seg_val"
IMAGES = 4


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    generate_shapes(tmp_path, num_train=1, num_val=IMAGES, image_size=(64, 80), seed=0)
    register_all(str(tmp_path))
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9,
        "DATASETS.TEST": f"('{NAME}',)",
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TEST": 64,
        "OUTPUT_DIR": tmp_path / "output",
    }
    return load_config("", [str(word) for pair in options.items() for word in pair])


class Stripes(nn.Module):
    """Says the same of every image, by its weight; stops where it is told to."""

    def __init__(self, stop_after: int = 1000):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("nothing", torch.tensor(False))
        self.seen: list[str] = []
        self._stop_after = stop_after

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(self.seen) == self._stop_after:
            raise KeyboardInterrupt
        (example,) = batch
        self.seen.append(Path(example["file_name"]).stem)
        labels = torch.arange(example["height"] * example["width"]).reshape(example["height"], example["width"]) % 9
        return [{"sem_seg": labels + 0 * int(self.weight)}]


def stop(cfg: CfgNode, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        Trainer.test(cfg, Stripes(after))


def test_stopped_evaluation_goes_on_with_the_images_that_are_left(cfg: CfgNode, tmp_path: Path, caplog):
    expected = Trainer.test(cfg, whole := Stripes())
    results = tmp_path / "output" / "inference" / NAME
    pictures = {path.name: path.read_bytes() for path in (results / "pictures").iterdir()}
    assert len(pictures) == 3 * IMAGES
    stop(cfg, 3)
    (results / "pictures.json").unlink()
    with caplog.at_level(logging.INFO, "maskformer"):
        assert Trainer.test(cfg, rest := Stripes()) == expected
    assert rest.seen == whole.seen[3:]
    assert "3 images were measured before, with the same weights" in caplog.text
    assert not list(results.glob("partial-*"))
    assert {path.name: path.read_bytes() for path in (results / "pictures").iterdir()} == pictures
    rows = json.loads((results / "pictures.json").read_text())
    assert [len(rows["worst"]), len(rows["best"])] == [2, 2]
    assert sorted(row["score"] for row in rows["best"])[0] >= sorted(row["score"] for row in rows["worst"])[-1]
    Trainer.test(cfg, again := Stripes())
    assert again.seen == whole.seen  # a finished evaluation is no interrupted one


def test_nothing_is_left_to_measure_after_a_stop_behind_the_last_image(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    expected = Trainer.test(cfg, Stripes())
    with monkeypatch.context() as patch:
        patch.setattr("maskformer.evaluation.SemanticEvaluator.evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Trainer.test(cfg, Stripes())
    assert Trainer.test(cfg, rest := Stripes()) == expected
    assert rest.seen == []


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_images_that_are_done_are_not_read(cfg: CfgNode):
    stop(cfg, 3)
    done = DatasetCatalog.get(NAME)[0]["file_name"]
    status = os.stat(done)
    Path(done).write_bytes(b"\0" * status.st_size)  # nothing that could be read
    os.utime(done, ns=(status.st_atime_ns, status.st_mtime_ns))
    Trainer.test(cfg, rest := Stripes())
    assert len(rest.seen) == IMAGES - 3


def test_resume_false_measures_all(cfg: CfgNode):
    stop(cfg, 3)
    cfg.TEST.RESUME = False
    Trainer.test(cfg, model := Stripes())
    assert len(model.seen) == IMAGES


def other_weights(cfg: CfgNode, model: Stripes) -> None:
    with torch.no_grad():
        model.weight.add_(torch.finfo(torch.float32).eps)


def another_buffer(cfg: CfgNode, model: Stripes) -> None:
    model.nothing.fill_(True)


def another_size(cfg: CfgNode, model: Stripes) -> None:
    cfg.INPUT.MIN_SIZE_TEST = 48


def another_threshold(cfg: CfgNode, model: Stripes) -> None:
    cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.5


def a_label_written_anew(cfg: CfgNode, model: Stripes) -> None:
    label = Path(DatasetCatalog.get(NAME)[-1]["sem_seg_file_name"])
    label.write_bytes(label.read_bytes())
    os.utime(label, (1, 1))


def other_metadata(cfg: CfgNode, model: Stripes) -> None:
    MetadataCatalog.get(NAME).set(added=1)


@pytest.mark.parametrize(
    "change", [other_weights, another_buffer, another_size, another_threshold, a_label_written_anew, other_metadata]
)
def test_partial_results_of_anything_else_are_not_used(cfg: CfgNode, change, caplog: pytest.LogCaptureFixture):
    stop(cfg, 3)
    model = Stripes()
    change(cfg, model)
    with caplog.at_level(logging.INFO, "maskformer"):
        Trainer.test(cfg, model)
    assert len(model.seen) == IMAGES
    assert "partial results of 1 other evaluations" in caplog.text


def test_results_with_and_without_compiled_loops_are_not_mixed(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    before = fingerprint(cfg, Stripes())
    monkeypatch.setattr("maskformer.evaluation.loop.import_loops", lambda: None)
    assert fingerprint(cfg, Stripes()) != before


def test_keys_without_effect_on_results_change_nothing(cfg: CfgNode):
    before = fingerprint(cfg, Stripes())
    for key, value in (
        ("MODEL.WEIGHTS", "a.pth"),
        ("TEST.EVAL_PERIOD", 5),
        ("OUTPUT_DIR", "b"),
        ("SOLVER.BASE_LR", 1.0),
    ):
        cfg.merge_from_list([key, value])
    assert fingerprint(cfg, Stripes()) == before
    assert fingerprint(cfg, Stripes(), ["fact"]) != before
    assert len(before) == 24


def test_processes_of_one_image_more_or_less_tell_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, 2])
    with caplog.at_level("INFO", logger="maskformer"):
        assert list(WatchedLoader(["a", "b", "c"], "garden_val")) == ["a", "b", "c"]
    assert "5 images of garden_val" in caplog.messages[0] and "5 of 5" in caplog.messages[-1]
