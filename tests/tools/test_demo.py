"""The demo from the dataset to the gallery, with a tiny model and a handful of images."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from detectron2.engine import HookBase
from tiny_model import TINY_MASK2FORMER

from maskformer.predictor import load
from maskformer.reports import gallery
from maskformer.tools import demo

Arguments = Callable[..., list[str]]
KEYS = {
    "SOLVER.MAX_ITER": 3,
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.CROP.ENABLED": False,
}

TINY_EOMT = {
    "MODEL.DEVICE": "cpu",
    "MODEL.EOMT.EMBED_DIM": 16,
    "MODEL.EOMT.DEPTH": 3,
    "MODEL.EOMT.NUM_HEADS": 2,
    "MODEL.EOMT.ANNEALING_STARTS": "[0, 0, 1]",
    "MODEL.EOMT.ANNEALING_ENDS": "[1, 2, 3]",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 50,
}


@dataclass(frozen=True)
class Finished:
    """A folder with all results, and what the console said meanwhile."""

    folder: Path
    datasets: Path
    console: str


@pytest.fixture(scope="module")
def arguments(shapes_config: str, tiny_options: list[str]) -> Arguments:
    """The command line of a demo that takes seconds."""

    def make_arguments(folder: Path, *options: str, num_val: int = 2) -> list[str]:
        fixed = ["--config-file", shapes_config, "--output-dir", str(folder)]
        fixed += ["--train-images", "4", "--val-images", str(num_val)]
        return [*fixed, *tiny_options, *(str(word) for pair in KEYS.items() for word in pair), *options]

    return make_arguments


@pytest.fixture(scope="module")
def finished(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder, datasets = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("datasets")
    return Finished(folder, datasets, run(arguments(folder), datasets))


@pytest.fixture
def _datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


def run(words: list[str], datasets: Path) -> str:
    """Run the demo in this process and return what it said."""
    console = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        patch.setattr(gallery, "SCALE", 1)  # for speed
        demo.run(demo.build_demo(demo.parse(words), console))
    return console.getvalue()


def interrupt(words: list[str], iteration: int) -> int:
    """Run the command line and press Ctrl-C in an iteration, which is the last that is completed."""

    class Stop(HookBase):
        def before_step(self) -> None:
            if self.trainer.iter == iteration:
                os.kill(os.getpid(), signal.SIGINT)

    build_hooks = demo.DemoTrainer.build_hooks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.DemoTrainer, "build_hooks", lambda trainer: [*build_hooks(trainer), Stop()])
        return demo.main(words)


def modification_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "log.txt"}


def test_demo_leaves_scores_and_a_gallery(finished: Finished) -> None:
    metrics = json.loads((finished.folder / "demo" / "metrics.json").read_text())
    assert (metrics["images"], metrics["iterations"], metrics["seed"]) == (2, 3, 0)
    assert {"sem_seg", "panoptic_seg", "segm"} <= metrics["scores"].keys()
    assert (finished.folder / "log.txt").read_text().count("Start inference on 2 batches") == 1
    pictures = {"000000.png", "000001.png", "gallery.png", "loss.png", "index.html"}
    assert {path.name for path in (finished.folder / "gallery").iterdir()} == pictures


def test_the_folder_of_the_demo_is_a_model(finished: Finished) -> None:
    predictor = load(finished.folder)
    assert str(finished.folder / "model_final.pth") == predictor.cfg.MODEL.WEIGHTS
    assert "ball" in predictor(np.zeros((64, 80, 3), np.uint8)).classes


def test_console_tells_each_step_the_scores_and_where_things_are(finished: Finished) -> None:
    for text in ("[1/4] Drawing the dataset", "[2/4] Training on cpu: 3/3 [", ", loss ", "[3/4] Evaluating: 2/2"):
        assert text in finished.console
    for text in ("[4/4] Drawing the gallery: 2/2", "mIoU", "PQ", "AP", str(finished.folder / "gallery" / "index.html")):
        assert text in finished.console


def test_second_call_reuses_everything(finished: Finished, arguments: Arguments) -> None:
    before = modification_times(finished.folder)
    console = run(arguments(finished.folder), finished.datasets)
    assert console.count("Reusing") == 4
    assert console.split("\n\n")[1] == finished.console.split("\n\n")[1]  # the scores
    assert modification_times(finished.folder) == before


def test_other_held_out_images_and_test_settings_measure_and_draw_anew_without_training(
    finished: Finished, arguments: Arguments, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "out")
    test_settings = ("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "0.9", "INPUT.MIN_SIZE_TEST", "80")
    console = run(arguments(folder, *test_settings), finished.datasets)
    for text in ("[2/4] Reusing the model", "[3/4] Evaluating", "[4/4] Drawing"):
        assert text in console
    console = run(arguments(folder, num_val=1), tmp_path / "datasets")
    for text in ("[2/4] Reusing the model", "[3/4] Evaluating", "[4/4] Drawing"):
        assert text in console


@pytest.mark.usefixtures("_datasets")
def test_interrupted_training_goes_on_where_it_stopped(
    arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(demo, "draw_gallery", lambda *_: None)  # for speed
    assert interrupt(arguments(out), iteration=1) == 130
    assert capfd.readouterr().err == "Interrupted; the same command goes on where this one stopped.\n"

    assert demo.main(arguments(out)) == 0
    captured = capfd.readouterr()
    assert "Training on cpu (from iteration 2): 2/3 [" in captured.out
    assert (out / "log.txt").read_text().count("Starting training from iteration 2") == 1
    # Nothing of what libraries print and log is on the console.
    assert captured.err == ""
    assert "DONE" not in captured.out and "INFO" not in captured.out


@pytest.mark.usefixtures("_datasets")
def test_other_settings_train_anew_and_keep_the_former_results(
    arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "gallery").mkdir(parents=True)
    (out / "model_final.pth").write_text("of another training")
    (out / "notes.md").write_text("the user's own")
    assert interrupt(arguments(out), iteration=0) == 130
    (kept,) = out.glob("before_*")
    assert {path.name for path in kept.iterdir()} == {"gallery", "model_final.pth"}
    assert (out / "notes.md").exists()
    assert f"kept in {kept}" in capfd.readouterr().out


@pytest.mark.parametrize(("model", "tiny"), [("mask2former", TINY_MASK2FORMER), ("eomt", TINY_EOMT)])
def test_a_model_is_chosen_by_its_name_and_has_a_folder_of_its_own(model: str, tiny: dict, tmp_path: Path) -> None:
    """And is trained, measured and drawn like the first generation."""
    folders = {demo.parse(["--model", name]).output_dir for name in demo.MODELS}
    assert demo.parse([]).output_dir in folders and len(folders) == 3
    options = [str(word) for pair in {**tiny, **KEYS}.items() for word in pair]
    images = ["--train-images", "2", "--val-images", "1"]
    words = ["--model", model, "--output-dir", str(tmp_path / "out"), *images, *options]
    assert "PQ" in run(words, tmp_path / "datasets")
    cfg = load(tmp_path / "out").cfg
    chosen = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    assert chosen == {"eomt": ("EoMT", "transformer_encoder")}.get(model, ("MaskFormer", "multi_scale_pixel_decoder"))


def test_mistake_ends_in_one_line(arguments: Arguments, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main(arguments(tmp_path / "out", "MODEL.MASK_FORMER.DROPUOT", "0.1")) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: Configuration key MODEL.MASK_FORMER.DROPUOT")
    assert error.count("\n") == 1
