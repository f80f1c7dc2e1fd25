"""Signals to real trainings: what they exit with, what is saved, and that they go on from it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_training import TinyTraining

from maskformer.demo.shapes import generate_shapes

Ledger = Callable[..., None]
LONG = ("SOLVER.MAX_ITER", "3000", "SOLVER.CHECKPOINT_PERIOD", "1000")


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(process.communicate(timeout=60)[0][-3000:])
        time.sleep(0.05)


def last_iteration(output: Path) -> int:
    """Of the steps that the log tells of; -1: none."""
    log = output / "tcappdll.log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return int(lines[-1].split("Iteration: ")[1].split()[0]) if lines else -1


def checkpoints(output: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("model_")) for path in output.glob("model_0*.pth"))


def end(process: subprocess.Popen[str], number: int, *, group: bool) -> tuple[str, float]:
    """Send a signal, to the process or to its whole group as a terminal does, and wait for its end."""
    start = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    printed, _ = process.communicate(timeout=300)
    return printed, time.monotonic() - start


@pytest.mark.slow
def test_sigterm_saves_the_last_step_and_resume_ends_the_training(
    training: TinyTraining, tmp_path: Path, ledger: Ledger
):
    process = training.start(tmp_path, *LONG, "DATALOADER.NUM_WORKERS", "2")
    wait_for(lambda: last_iteration(tmp_path) >= 3, process)
    printed, seconds = end(process, signal.SIGTERM, group=True)  # data workers get it too
    assert process.returncode == 143, printed[-3000:]
    assert "Traceback" not in printed
    saved = last_iteration(tmp_path)
    assert checkpoints(tmp_path) == [saved]
    ledger("SIGTERM in a training, to all its processes", injected=1, survived=1, lost=0, seconds=[seconds])
    printed = training.run(tmp_path, "--resume", *LONG, "SOLVER.MAX_ITER", str(saved + 3))
    assert f"resumed after iteration {saved + 1}" in printed
    assert last_iteration(tmp_path) == saved + 2
    assert (tmp_path / "model_final.pth").exists()


@pytest.mark.slow
def test_sigusr1_saves_and_goes_on_and_ctrl_c_saves_and_stops(training: TinyTraining, tmp_path: Path, ledger: Ledger):
    process = training.start(tmp_path, *LONG, "DATALOADER.NUM_WORKERS", "1")
    wait_for(lambda: last_iteration(tmp_path) >= 2, process)
    os.killpg(process.pid, signal.SIGUSR1)
    wait_for(lambda: len(checkpoints(tmp_path)) == 1, process)
    asked = checkpoints(tmp_path)[0]
    wait_for(lambda: last_iteration(tmp_path) > asked + 1, process)
    printed, seconds = end(process, signal.SIGINT, group=True)
    assert process.returncode == 130, printed[-3000:]
    assert "Traceback" not in printed
    assert checkpoints(tmp_path) == [asked, last_iteration(tmp_path)]
    ledger("SIGUSR1 in a training", injected=1, survived=1, lost=0)
    ledger("Ctrl-C in a training", injected=1, survived=1, lost=0, seconds=[seconds])


@pytest.mark.slow
def test_two_processes_save_and_stop_at_one_step(training: TinyTraining, tmp_path: Path, ledger: Ledger):
    process = training.start(tmp_path, *LONG, "--num-gpus=2")
    wait_for(lambda: last_iteration(tmp_path) >= 2, process)
    os.kill(process.pid, signal.SIGUSR1)  # to the one that started both
    wait_for(lambda: len(checkpoints(tmp_path)) == 1, process)
    printed, seconds = end(process, signal.SIGTERM, group=False)
    assert process.returncode == 143, printed[-3000:]
    assert "Traceback" not in printed
    assert checkpoints(tmp_path)[1:] == [last_iteration(tmp_path)]
    ledger("SIGUSR1 and SIGTERM in two processes", injected=2, survived=2, lost=0, seconds=[seconds])


@pytest.fixture
def evaluating(tmp_path: Path) -> TinyTraining:
    """Trainings whose evaluation takes far longer than a step."""
    generate_shapes(tmp_path / "datasets", num_train=4, num_val=300, image_size=(64, 80), seed=0)
    return TinyTraining(tmp_path / "datasets")


@pytest.mark.slow
def test_sigterm_in_an_evaluation_saves_the_last_step(evaluating: TinyTraining, tmp_path: Path, ledger: Ledger):
    output = tmp_path / "output"
    evaluation = ("DATASETS.TEST", "('shapes_panoptic_val',)", "TEST.EVAL_PERIOD", "3")
    process = evaluating.start(output, *LONG, *evaluation)
    wait_for(lambda: (output / "log.txt").exists() and "Start inference" in (output / "log.txt").read_text(), process)
    printed, seconds = end(process, signal.SIGTERM, group=False)
    assert process.returncode == 143, printed[-3000:]
    assert "Total inference time" not in printed
    assert checkpoints(output) == [2]
    ledger("SIGTERM in an evaluation within a training", injected=1, survived=1, lost=0, seconds=[seconds])


@pytest.mark.slow
def test_ctrl_c_in_an_evaluation_alone_is_one_line(evaluating: TinyTraining, tmp_path: Path, ledger: Ledger):
    output = tmp_path / "output"
    workers = ("DATALOADER.NUM_WORKERS", "2")
    process = evaluating.start(output, "--eval-only", "DATASETS.TEST", "('shapes_panoptic_val',)", *workers)
    wait_for(lambda: (output / "log.txt").exists() and "Inference done" in (output / "log.txt").read_text(), process)
    printed, seconds = end(process, signal.SIGINT, group=True)
    assert process.returncode == 130, printed[-3000:]
    assert printed.splitlines()[-1] == "interrupted"
    assert "Traceback" not in printed
    ledger("Ctrl-C in an evaluation", injected=1, survived=1, lost=0, seconds=[seconds])


STUCK = """
import signal, time
from maskformer.runs.signals import REQUESTS, StopFlag
REQUESTS.stop_flag = StopFlag()
with REQUESTS.listening():
    print("ready", flush=True)
    while True:
        time.sleep(0.1)
"""


@pytest.mark.slow
def test_second_ctrl_c_ends_a_step_that_never_ends(ledger: Ledger):
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", STUCK], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # the same one, as torchrun passes it on
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert process.wait(timeout=5) == 130
    ledger("second Ctrl-C", injected=1, survived=1, lost=0, seconds=[time.monotonic() - start])
