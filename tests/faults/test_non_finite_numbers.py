"""Weights, losses and learning rates gone wrong in real trainings: nothing that is not finite is ever saved."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from tiny_training import CONFIG, REPOSITORY, TINY, TinyTraining, metrics_of

from maskformer.config import load_config

pytestmark = pytest.mark.slow

LAYER = "sem_seg_head.predictor.class_embed"
# In process 1 alone, the loss of iterations 3 and 4 is infinite, with finite gradients.
INFINITE_AT_TIMES = """
import sys
from detectron2.utils import comm
from maskformer.engine import Trainer, build_argument_parser, run, setup

def main(args):
    trainer = Trainer(setup(args))
    def spoil(module, inputs, losses):
        if comm.get_rank() == 1 and trainer.iter in (3, 4):
            losses["loss_ce"] = losses["loss_ce"] + float("inf")
    trainer.model.module.criterion.register_forward_hook(spoil)
    trainer.train()

if __name__ == "__main__":
    sys.exit(run(main, build_argument_parser().parse_args()))
"""


def not_finite(value: Any) -> list[str]:
    """Names of tensors, anywhere in a checkpoint, that hold NaN or infinity."""
    if isinstance(value, torch.Tensor):
        return [] if value.isfinite().all() else [""]
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [f"{key}.{name}" for key, part in parts for name in not_finite(part)]


def non_finite_checkpoints(output: Path) -> list[str]:
    return [path.name for path in output.glob("*.pth") if not_finite(torch.load(path, weights_only=True))]


def test_weights_that_are_not_finite_stop_the_run_with_their_name(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None]
):
    weights = build_model(load_config(str(REPOSITORY / CONFIG), TINY)).state_dict()
    weights[f"{LAYER}.weight"][0] = torch.nan
    torch.save({"model": weights}, tmp_path / "spoilt.pth")
    words = ["MODEL.WEIGHTS", str(tmp_path / "spoilt.pth"), "SOLVER.MAX_BAD_STEPS", "3"]
    process = training.start(tmp_path / "run", *words)
    printed, _ = process.communicate(timeout=120)
    stopped = process.returncode == 3 and not list((tmp_path / "run").glob("*.pth"))
    ledger("NaN in one layer of a checkpoint", injected=1, survived=int(stopped), lost=0)
    assert stopped, printed[-3000:]
    last = printed.splitlines()[-1]
    assert last.startswith("error: Training stopped at iteration 2: 3 steps in a row (SOLVER.MAX_BAD_STEPS)")
    assert f"first bad result: module {LAYER}, whose weight is not finite itself" in last
    assert re.search(r"images \S+/train/\d+\.jpg, \S+/train/\d+\.jpg; not finite: loss_ce", last)
    assert printed.count("numbers are not finite, the step is skipped") == 3
    assert "Traceback" not in printed


def test_learning_rate_far_too_high_is_named_and_nothing_non_finite_is_saved(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None]
):
    words = ["SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "1"]
    process = training.start(tmp_path, *words, "SOLVER.MAX_BAD_STEPS", "4")
    printed, _ = process.communicate(timeout=120)
    spoilt = non_finite_checkpoints(tmp_path)
    ledger("learning rate of 1e30", injected=1, survived=int(not spoilt), lost=len(spoilt))
    assert process.returncode == 3, printed[-3000:]
    assert printed.count("The learning rate is 1e+30; AdamW rarely bears more than 0.01") == 1
    assert printed.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in printed
    assert not spoilt


def test_a_bad_loss_in_one_process_skips_the_step_in_all(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None]
):
    script = tmp_path / "spoiling.py"
    script.write_text(INFINITE_AT_TIMES)
    process = subprocess.run(
        [sys.executable, "-W", "ignore", script, "--num-gpus=2", "--config-file", CONFIG, *TINY,
         "OUTPUT_DIR", tmp_path],
        cwd=REPOSITORY, text=True, capture_output=True, check=False, timeout=200,
        env={**os.environ, "DETECTRON2_DATASETS": str(training.datasets), "OMP_NUM_THREADS": "1",
             "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    printed = process.stdout + process.stderr
    assert process.returncode == 0, printed[-3000:]
    spoilt = non_finite_checkpoints(tmp_path)
    ledger("infinite loss in one of two processes", injected=2, survived=2, lost=len(spoilt))
    assert not spoilt
    assert metrics_of(tmp_path)[-1]["bad_steps"] == 2
    assert [int(i) for i in re.findall(r"Iteration (\d+): numbers are not finite", printed)] == [3, 4]
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    steps = {int(state["step"]) for state in checkpoint["trainer"]["_trainer"]["optimizer"]["state"].values()}
    assert steps == {10}, "two of twelve are skipped"
    assert checkpoint["trainer"]["_trainer"]["bad_steps"] == {"total": 2, "in_a_row": 0}
