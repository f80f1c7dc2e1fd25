from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from maskformer.demo.shapes import generate_shapes
from maskformer.engine import Trainer, build_argument_parser, run

REPOSITORY = Path(__file__).resolve().parent.parent
R50 = str(REPOSITORY / "configs/ade20k-150/maskformer_R50_bs16_160k.yaml")
THIN = [
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "8",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "4",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "2",
]


@pytest.fixture(scope="module")
def train_net() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_net", REPOSITORY / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _loggers():
    """Leave the loggers that a run configures as they were."""
    loggers = [
        logging.getLogger(name) for name in ("detectron2", "fvcore", "maskformer", "detectron2.engine.train_loop")
    ]
    before = [(logger.level, logger.propagate, logger.handlers[:], logger.filters[:]) for logger in loggers]
    logging.captureWarnings(False)  # pytest took back what an earlier test had set
    yield
    logging.captureWarnings(False)
    for logger, (level, propagate, handlers, filters) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers, logger.filters = propagate, handlers, filters


@pytest.fixture
def error_of(train_net: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The line on the standard error with which a user's mistake ends a run."""

    def run_with(*words: str) -> str:
        output = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "output")]
        code = run(train_net.main, build_argument_parser().parse_args([*words, *output]))
        error = capsys.readouterr().err
        assert code == 2
        assert "Traceback" not in error
        line = error.splitlines()[-1]  # after warnings of PyTorch's
        assert line.startswith("error: ")
        return line

    return run_with


def test_command_line_ends_in_one_line_for_a_key_that_does_not_exist():
    words = [sys.executable, "-W", "ignore", "train_net.py", "--config-file", R50, "MODEL.MASK_FORMER.NUM_QUERIES", "1"]
    result = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: Configuration key MODEL.MASK_FORMER.NUM_QUERIES in the command line does not exist.")
    assert "NUM_OBJECT_QUERIES" in line


def test_missing_configuration_file_is_named(error_of):
    assert "nowhere.yaml cannot be read" in error_of("--config-file", "nowhere.yaml")


def test_value_of_the_wrong_type_is_explained(error_of):
    assert "SOLVER.MAX_ITER" in error_of("--config-file", R50, "SOLVER.MAX_ITER", "many")


def test_key_without_value_is_explained(error_of):
    assert "KEY VALUE" in error_of("--config-file", R50, "MODEL.WEIGHTS")


@pytest.mark.parametrize("mode", [[], ["--eval-only"]])
def test_missing_dataset_is_named(error_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: list[str]):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    line = error_of(
        "--config-file",
        R50,
        *mode,
        *THIN,
        "MODEL.WEIGHTS",
        "",
        "DATASETS.TEST",
        "('nothing_val',)",
        "DATASETS.TRAIN",
        "('nothing_train',)",
    )
    assert ("nothing_val" if mode else "nothing_train") in line
    assert "not registered" in line


def test_missing_weights_are_named(error_of):
    line = error_of("--config-file", R50, "--eval-only", *THIN, "MODEL.WEIGHTS", "nowhere.pth")
    assert "nowhere.pth does not exist; set MODEL.WEIGHTS" in line


def test_impossible_value_ends_before_anything_is_written(error_of, tmp_path: Path):
    assert "SOLVER.MAX_ITER is -5" in error_of("--config-file", R50, "SOLVER.MAX_ITER", "-5")
    assert not (tmp_path / "output").exists()


def test_weights_of_other_classes_are_explained(error_of, tmp_path: Path):
    name = "sem_seg_head.predictor.class_embed.weight"
    torch.save({name: torch.zeros(134, 256)}, tmp_path / "coco.pth")
    line = error_of("--config-file", R50, "--eval-only", *THIN, "MODEL.WEIGHTS", str(tmp_path / "coco.pth"))
    assert f"Parameter {name} has shape (134, 256)" in line
    assert "change MODEL.SEM_SEG_HEAD.NUM_CLASSES" in line


@pytest.fixture
def tested_weights(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The weights of the one-parameter models that a run evaluates."""
    seen: list[float] = []

    def test(cfg: Any, model: nn.Module) -> dict[str, Any]:
        seen.append(model.weight.item())
        return {}

    monkeypatch.setattr(Trainer, "build_model", lambda cfg: nn.Linear(1, 1, bias=False))
    monkeypatch.setattr(Trainer, "test", test)
    return seen


@pytest.mark.parametrize(("resume", "expected"), [([], 2.0), (["--resume"], 3.0)])
def test_evaluation_takes_given_weights_or_resumes(
    train_net: ModuleType, tmp_path: Path, tested_weights: list[float], resume: list[str], expected: float
):
    torch.save({"weight": torch.full((1, 1), 2.0)}, tmp_path / "given.pth")
    torch.save({"weight": torch.full((1, 1), 3.0)}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    options = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(tmp_path / "given.pth")]
    arguments = ["--config-file", R50, "--eval-only", *resume, *options]
    assert run(train_net.main, build_argument_parser().parse_args(arguments)) == 0
    assert tested_weights == [expected]


@pytest.mark.parametrize("mode", [[], ["--eval-only"]])
def test_resume_among_copied_checkpoints_touches_nothing(error_of, tmp_path: Path, mode: list[str]):
    folder = tmp_path / "output"
    folder.mkdir()
    torch.save({"model": {}, "iteration": 3}, folder / "model_final.pth")
    (folder / "metrics.json").write_text('{"iteration": 3}\n')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    line = error_of("--config-file", R50, "--resume", *mode)
    assert "model_final.pth" in line
    assert "last_checkpoint" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["model_0000003.pth", "other.pth"])
def test_checkpoints_of_an_earlier_run_are_refused_where_torchrun_may_start_again(
    error_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """A restart would go on from them. Weights without a checksum may be anything, and a restart refuses them."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / name).touch()
    if name.startswith("model"):
        (tmp_path / "output" / "last_checkpoint").write_text(name)
    line = error_of("--config-file", R50)
    assert name in line and "--resume" in line and str(tmp_path / "output") in line


def test_expected_results_are_held_to_in_evaluation_alone(
    train_net: ModuleType, tmp_path: Path, tested_weights: list[float], capsys: pytest.CaptureFixture
):
    words = [
        "--config-file",
        R50,
        "--eval-only",
        "MODEL.DEVICE",
        "cpu",
        "OUTPUT_DIR",
        str(tmp_path),
        "MODEL.WEIGHTS",
        "",
    ]
    expected = ["TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 44.5, 0.2]]"]
    assert run(train_net.main, build_argument_parser().parse_args([*words, *expected])) == 3
    assert len(tested_weights) == 1
    assert "TEST.EXPECTED_RESULTS expects sem_seg mIoU to be 44.5" in capsys.readouterr().err


TINY = [
    *("SEED", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.DEVICE", "cpu"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "1", "TEST.EVAL_PERIOD", "2"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "LOG.PICTURES", "1"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32"),
    *("MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.NHEADS", "4"),
]


@pytest.mark.slow
def test_screen_has_few_lines_and_the_log_file_all(tmp_path: Path):
    generate_shapes(tmp_path, num_train=4, num_val=3, image_size=(64, 80), seed=0)
    output = tmp_path / "out put"
    words = [sys.executable, "train_net.py", "--config-file", "configs/shapes/maskformer_panoptic.yaml", *TINY]
    variables = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [*words, "LOG.TCAPPDLL_LINES", "True", "OUTPUT_DIR", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("TCAPPDLL")]
    start = next(number for number, line in enumerate(lines) if line.startswith("iteration"))
    introduction = "\n".join(lines[:start])
    assert start <= 10
    for fact in ("shapes_panoptic_train, 4 images", "shapes_panoptic_val, 3 images", "9 classes", str(output)):
        assert fact in introduction
    assert len([line for line in lines if line.startswith("Scores on shapes_panoptic_val")]) == 2
    assert len([line for line in lines if line.startswith("Classes of shapes_panoptic_val")]) == 1  # at the end
    assert len([line for line in lines if line.startswith("grass ")]) == 1
    assert not [line for line in lines if "Warning" in line or "copypaste" in line or "[" in line]
    places = [line.split(maxsplit=1) for line in lines[-3:]]
    named = {"model": "/model_final.pth", "results": "", "report": "/report.html"}
    assert places == [[title, f"{output}{name}"] for title, name in named.items()]
    log = (output / "log.txt").read_text()
    for line in lines:
        assert line.removeprefix("warning: ").strip() in log
    assert "copypaste: mIoU" in log and "MASK_FORMER:" in log and "(backbone): ResNet" in log
    tcappdll = [line for line in done.stdout.splitlines() if line.startswith("TCAPPDLL")]
    assert tcappdll == (output / "tcappdll.log").read_text().splitlines() and len(tcappdll) == 3
    record = json.loads((output / "run.json").read_text())
    assert record["kind"] == "training" and record["finished"] and record["processes"] == 1
    assert record["changed"]["SOLVER.MAX_ITER"][1] == record["iterations"] == 3
    assert record["data"][0] == {"dataset": "shapes_panoptic_train", "images": 4}
    assert record["model"]["architecture"] == "MaskFormer" and record["peak_memory_mb"] > 0
    assert (output / "report.html").is_file()
    events = EventAccumulator(str(output))
    events.Reload()
    assert [image.step for image in events.Images("validation/000000")] == [1, 3]
