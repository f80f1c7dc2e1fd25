from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, Dataset

from maskformer.engine import build_argument_parser, run, setup
from maskformer.structures import BadImageError, InputError, RunError


@pytest.fixture(autouse=True)
def loggers():
    """Leave the loggers that ``setup`` configures as they were."""
    names = ("detectron2", "fvcore", "maskformer", "detectron2.engine.train_loop", "py.warnings")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate, logger.handlers[:], logger.filters[:]) for logger in loggers]
    logging.captureWarnings(False)  # pytest took back what an earlier test had set
    yield
    logging.captureWarnings(False)
    for logger, (level, propagate, handlers, filters) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers, logger.filters = propagate, handlers, filters


class BrokenDataset(Dataset):
    def __init__(self, kind: type[InputError] = InputError):
        self.kind = kind

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        try:
            raise OSError("image file is truncated")
        except OSError as error:
            raise self.kind("Image file a.jpg cannot be read: truncated. Restore it.") from error


def arguments(*words: str) -> argparse.Namespace:
    return build_argument_parser().parse_args(words)


def load_in_worker(_: argparse.Namespace) -> None:
    next(iter(DataLoader(BrokenDataset(), num_workers=1)))


def raise_input_error(_: argparse.Namespace) -> None:
    raise InputError("Key X is 1, expected 2.")


def test_success_exits_with_0(capsys: pytest.CaptureFixture):
    assert run(lambda _: {"sem_seg": {"mIoU": 1.0}}, arguments()) == 0
    assert capsys.readouterr().err == ""


def test_input_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture):
    assert run(raise_input_error, arguments()) == 2
    assert capsys.readouterr().err == "error: Key X is 1, expected 2.\n"


def load_bad_image_in_worker(_: argparse.Namespace) -> None:
    next(iter(DataLoader(BrokenDataset(BadImageError), num_workers=1)))


def test_bad_image_of_a_data_worker_is_one_line(capsys: pytest.CaptureFixture):
    assert run(load_bad_image_in_worker, arguments()) == 2
    assert capsys.readouterr().err == "error: Image file a.jpg cannot be read: truncated. Restore it.\n"


def test_input_error_of_a_data_worker_is_one_line(capsys: pytest.CaptureFixture):
    assert run(load_in_worker, arguments()) == 2
    assert capsys.readouterr().err == "error: Image file a.jpg cannot be read: truncated. Restore it.\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("Out of X."), 3, "error: Out of X.\n"),
        (BadImageError("Image a."), 2, "error: Image a.\n"),
        (ProcessRaisedException("text\nmaskformer.structures.RunError: Out of X.\n", 1, 1), 3, "error: Out of X.\n"),
        (ProcessRaisedException("text\nmaskformer.structures.BadImageError: Bad.\n", 1, 1), 2, "error: Bad.\n"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(error: Exception, code: int, line: str, capsys: pytest.CaptureFixture):
    def fail(_: argparse.Namespace) -> None:
        raise error

    assert run(fail, arguments()) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [ValueError("a bug"), ProcessRaisedException("ValueError: a bug", 1, 1)])
def test_other_errors_keep_their_traceback(error: Exception):
    def fail(_: argparse.Namespace) -> None:
        raise error

    with pytest.raises(type(error), match="a bug"):
        run(fail, arguments())


def test_interruption_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture):
    def interrupt(_: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert run(interrupt, arguments()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_more_processes_than_devices_are_refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "torch.multiprocessing.start_processes", lambda *_, **__: None
    )  # start no process, come what may
    assert run(raise_input_error, arguments("--num-gpus", "99")) == 2
    assert "error: --num-gpus is 99, but " in capsys.readouterr().err


def test_arguments_are_detectron2s():
    args = arguments("--config-file", "a.yaml", "--eval-only", "--resume", "--num-gpus", "2", "MODEL.DEVICE", "cpu")
    assert (args.config_file, args.eval_only, args.resume, args.num_gpus) == ("a.yaml", True, True, 2)
    assert args.opts == ["MODEL.DEVICE", "cpu"]


def test_setup_resolves_the_device_and_writes_the_config(tmp_path: Path):
    cfg = setup(arguments("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)))
    assert cfg.is_frozen()
    assert cfg.MODEL.DEVICE == "cpu"
    assert "DEVICE: cpu" in (tmp_path / "config.yaml").read_text()


def test_setup_logs_ours_to_the_output_folder(tmp_path: Path):
    setup(arguments("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)))
    logging.getLogger("maskformer.data").info("a line of ours")
    assert "a line of ours" in (tmp_path / "log.txt").read_text()


def test_setup_registers_the_users_own_datasets(tmp_path: Path):
    split = "train: {images: images, labels: labels}"
    text = f"DATASETS:\n  OWN: {{launch: {{classes: [grass, path], {split}}}}}\n  TRAIN: [launch_train]\n"
    (tmp_path / "own.yaml").write_text(text)
    options = ("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "output"), "MODEL.META_ARCHITECTURE", "MaskFormer")
    schedule = ("MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead", "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR")
    try:
        setup(arguments("--config-file", str(tmp_path / "own.yaml"), *options, *schedule))
        assert MetadataCatalog.get("launch_train").stuff_classes == ["grass", "path"]
        assert MetadataCatalog.get("launch_train").sem_seg_root == str(tmp_path / "labels")
    finally:
        DatasetCatalog.remove("launch_train")
        MetadataCatalog.remove("launch_train")


@pytest.mark.parametrize(
    ("key", "valid"),
    [
        ("MODEL.META_ARCHITECTURE", "MaskFormer"),
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        ("MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"),
    ],
)
def test_unknown_name_lists_the_valid_ones(key: str, valid: str):
    with pytest.raises(InputError, match=rf"{key} is 'MaskFromer', expected one of .*\b{valid}\b"):
        setup(arguments("MODEL.DEVICE", "cpu", key, "MaskFromer"))


def test_traceback_of_an_input_error_is_kept_out_of_the_training_log(tmp_path: Path):
    setup(arguments("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)))
    logger = logging.getLogger("detectron2.engine.train_loop")
    for error in (InputError("Label a.png holds 7."), ValueError("a bug")):
        try:
            raise error
        except ValueError:
            logger.exception("Exception during training:")
    log = (tmp_path / "log.txt").read_text()
    assert "a bug" in log
    assert "Label a.png holds 7." not in log


def test_operation_that_is_not_deterministic_is_named_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored afterwards
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            setup(arguments("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "SOLVER.DETERMINISTIC", "True"))
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            for _ in range(3):  # what PyTorch says on devices that have such operations
                warnings.warn("grid_sampler_2d_backward does not have a deterministic implementation", stacklevel=1)
        finally:
            logging.captureWarnings(False)
            torch.use_deterministic_algorithms(False)
    assert (tmp_path / "log.txt").read_text().count("WARNING: ") == 1
    assert "grid_sampler_2d_backward" in (tmp_path / "log.txt").read_text()
