"""A run that is killed again and again ends like one that never was: losses, scores and weights, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import MASK2FORMER, TinyTraining, metrics_of

from maskformer.checkpoint import read_weights
from maskformer.sdaa.tcappdll import parse_line

KILLS = -(-int(os.environ.get("MASKFORMER_FAULT_KILLS", "3")) // 3)  # in each of the three cases below
TIMES = (
    "time",
    "data_time",
    "rank_data_time",
    "images_per_second",
    "eta_seconds",
    "memory_in_use_mb",
    "memory_peak_mb",
)
EVALUATION = ("DATASETS.TEST", "('shapes_panoptic_val',)", "TEST.EVAL_PERIOD", "4", "TEST.BEST_METRIC", "sem_seg/mIoU")
HALF_PRECISION = ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16")
EXACT = ("SOLVER.DETERMINISTIC", "True", "SOLVER.MAX_ITER", str(max(12, 6 * KILLS)))
PATIENCE = 240  # seconds

# What the run is, what it is besides where it is killed, and where it is killed.
CASES = {
    "2 workers as 0": (EVALUATION, ("DATALOADER.NUM_WORKERS", "2"), ("evaluation", "save", "step")),
    "Mask2Former, bfloat16 and accumulation": (
        (*MASK2FORMER, *HALF_PRECISION, "SOLVER.ACCUMULATION_STEPS", "2"),
        (),
        ("step", "save"),
    ),
    "Mask2Former, 2 processes": (("--num-gpus=2", *MASK2FORMER), (), ("save", "step")),
}


def losses_of(output: Path) -> list[tuple[int, float]]:
    """Iteration and loss of each line of tcappdll.log."""
    path = output / "tcappdll.log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [record for line in lines if (record := parse_line(line)) is not None]
    return [(record.iteration, record.loss) for record in records]


def scores_of(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.json without what a clock measured."""
    lines = [{name: value for name, value in line.items() if name not in TIMES} for line in metrics_of(output)]
    return [line for line in lines if line.keys() > {"iteration"}]


def tensors_of(content: Any, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors in nested containers, by their place."""
    if isinstance(content, torch.Tensor):
        return {name: content}
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return {key: tensor for inner, value in items for key, tensor in tensors_of(value, f"{name}/{inner}").items()}


def trained_state(output: Path) -> dict[str, torch.Tensor]:
    """Weights and the optimiser's state at the end."""
    content = read_weights(str(output / "model_final.pth"))
    return tensors_of({"model": content["model"], "optimizer": content["trainer"]["_trainer"]["optimizer"]})


def assert_same_run(output: Path, expected: Path) -> None:
    assert losses_of(output) == losses_of(expected)
    assert repr(scores_of(output)) == repr(scores_of(expected))  # NaN is NaN
    state, expected_state = trained_state(output), trained_state(expected)
    assert state.keys() == expected_state.keys()
    assert not [name for name, tensor in state.items() if not torch.equal(tensor, expected_state[name])]


def starts_of(output: Path) -> int:
    """How often a run in this folder has come to its first step."""
    log = output / "log.txt"
    return log.read_text(encoding="utf-8").count("Starting training from iteration") if log.exists() else 0


def is_saving(output: Path) -> bool:
    return any(name.endswith(".partial") and ".pth" in name for name in os.listdir(output))


def kill_at(moment: str, process: subprocess.Popen[str], output: Path, choice: random.Random) -> bool:
    """Kill a run with all its processes in a step, in a save or in an evaluation; False if it ended before."""
    log = output / "log.txt"
    steps, length = len(losses_of(output)) + choice.randint(1, 4), log.stat().st_size if log.exists() else 0
    delay = choice.uniform(0, 0.3)

    def evaluates() -> bool:
        return "Start inference on" in log.read_text()[length:] if log.exists() else False

    is_there: dict[str, Callable[[], bool]] = {
        "step": lambda: len(losses_of(output)) >= steps,
        "save": lambda: output.exists() and is_saving(output),
        "evaluation": evaluates,
    }
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if is_there[moment]():
            time.sleep(delay if moment != "save" else 0)
            break
        time.sleep(0.0002 if moment == "save" else 0.01)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    return True


def run_killed(
    training: TinyTraining, output: Path, words: tuple[str, ...], moments: list[str], choice: random.Random
) -> tuple[dict[str, int], list[float]]:
    """Start a run, kill it at each moment, resume each time, and let it end.

    Returns:
        Kills by moment, and the seconds from each restart to its first step.
    """
    kills: dict[str, int] = {}
    seconds: list[float] = []
    for moment in [*moments, ""]:
        started, starts = time.monotonic(), starts_of(output)
        process = training.start(output, "--resume", *words)
        printed: list[str] = []
        reader = threading.Thread(target=lambda p=process, to=printed: to.append(p.communicate()[0]))
        reader.start()
        while starts_of(output) == starts and process.poll() is None:
            time.sleep(0.01)
        seconds.append(time.monotonic() - started)
        if moment and kill_at(moment, process, output, choice):
            kills[moment] = kills.get(moment, 0) + 1
        reader.join(PATIENCE)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, printed[0][-3000:]
    return kills, seconds[1:]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_run_ends_like_one_that_never_was(
    case: str, training: TinyTraining, tmp_path: Path, ledger: Callable[..., None]
):
    words, others, places = CASES[case]
    choice = random.Random(case)
    moments = [places[index % len(places)] for index in range(KILLS)]
    training.run(tmp_path / "whole", *EXACT, *words)
    kills, seconds = run_killed(training, tmp_path / "killed", (*EXACT, *words, *others), moments, choice)
    assert sum(kills.values()) == KILLS
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    for moment, number in kills.items():
        ledger(f"SIGKILL of a training, in: {moment}", injected=number, survived=number, lost=0, seconds=seconds)
        seconds = []
