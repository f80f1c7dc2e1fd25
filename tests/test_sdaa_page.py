"""The commands of docs/sdaa.md, on the emulated device."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "sdaa.md").read_text(encoding="utf-8")
BLOCKS = [block.replace("\\\n", " ").strip().splitlines() for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)]
BASE, _, BUILD, TRAIN, COMPARE = BLOCKS
# The command as it stands, on pictures of 64 pixels, with fewer processes than a card has devices.
REDUCED = [
    *("--num-gpus=2", "--dist-url=auto", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "MODEL.WEIGHTS", ""),
    *("INPUT.CROP.SIZE", "(64,64)", "INPUT.SIZE_DIVISIBILITY", "64", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()"),
]


def run(command: str, folder: Path, *more: str, **variables: str) -> str:
    """A command of the page, run where its output folder is; Python is this one."""
    words = [word.replace("output/", f"{folder}/") for word in shlex.split(command)]
    flags = [word for word in more if word.startswith("--")]
    words = [sys.executable, "-W", "ignore", *words[1:2], *flags, *words[2:], *more[len(flags) :]]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests" / "sdaa_emulation"), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        words, cwd=REPOSITORY, env=environment | variables, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return process.stdout


def test_page_has_the_five_steps_in_both_languages():
    titles = re.findall(r"^## (\d)\. .+ / .*[\u4e00-\u9fff]", PAGE, re.MULTILINE)
    assert titles == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
def test_base_environment_is_checked(tmp_path: Path):
    assert run(BASE[0], tmp_path).split()[1:] == ["True", "4"]


@pytest.mark.slow
def test_device_is_described(tmp_path: Path):
    lines = run(BUILD[-1], tmp_path).splitlines()
    assert lines[:2] == ["device: sdaa (emulated SDAA)", "devices here: 4"]
    assert lines[-2:] == ["mixed precision: float16", "process group: cpu:gloo,sdaa:tccl"]


@pytest.mark.slow
@pytest.mark.samples
def test_training_keeps_its_log_and_compares_with_itself(samples_root: Path, tmp_path: Path):
    command = TRAIN[0].replace("--num-gpus 4 ", "").replace("SOLVER.AMP.ENABLED True", "")  # float16 is slow here
    run(command, tmp_path, *REDUCED, DETECTRON2_DATASETS=str(samples_root))
    assert (tmp_path / "sdaa" / "tcappdll.log").read_text().count("TCAPPDLL") == 2
    shutil.copytree(tmp_path / "sdaa", tmp_path / "cuda")  # stands in for CUDA's
    printed = run(COMPARE[0], tmp_path)
    assert "MeanRelativeError: 0.0" in printed
    assert "strict: pass" in printed
    assert (tmp_path / "compare_loss.png").exists()
