"""Full disks, lost folders and second runs, done to real trainings."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_signals import LONG, Ledger, checkpoints, end, last_iteration, wait_for
from tiny_training import TinyTraining, metrics_of

PERIODIC = ("SOLVER.MAX_ITER", "3000", "SOLVER.CHECKPOINT_PERIOD", "4")


def limit_file_size(process: Any, limit: int) -> None:
    """What a full disk does: no file of the process grows beyond so many bytes; -1 takes the limit away."""
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, most))


@pytest.mark.slow
def test_second_run_is_refused_until_the_first_is_gone(training: TinyTraining, tmp_path: Path, ledger: Ledger):
    first = training.start(tmp_path, *LONG)
    wait_for(lambda: last_iteration(tmp_path) >= 1, first)
    second = training.start(tmp_path, *LONG)
    printed, _ = second.communicate(timeout=300)
    assert second.returncode == 2
    assert f"error: OUTPUT_DIR is {tmp_path}, where another training runs: process {first.pid} on " in printed
    assert first.poll() is None
    end(first, signal.SIGKILL, group=False)
    start = time.monotonic()
    training.run(tmp_path, "SOLVER.MAX_ITER", "1")
    ledger("second run in one folder", injected=1, survived=1, lost=0)
    ledger("SIGKILL of the run that has the folder", injected=1, survived=1, lost=0, seconds=[time.monotonic() - start])


@pytest.mark.slow
def test_full_disk_is_outlived_and_nothing_of_the_log_is_lost(training: TinyTraining, tmp_path: Path, ledger: Ledger):
    process = training.start(tmp_path, *PERIODIC)
    wait_for(lambda: checkpoints(tmp_path) == [3], process)
    limit_file_size(process, 10)
    before = last_iteration(tmp_path)
    time.sleep(5)
    good = checkpoints(tmp_path)
    limit_file_size(process, -1)
    start = time.monotonic()
    wait_for(lambda: checkpoints(tmp_path) > good, process)
    seconds = time.monotonic() - start
    printed, _ = end(process, signal.SIGTERM, group=False)
    assert process.returncode == 143
    assert "is not saved (" in printed and "tcappdll.log cannot be written (File too large)" in printed
    steps = [int(line.split("Iteration: ")[1].split()[0]) for line in (tmp_path / "tcappdll.log").open()]
    assert steps == list(range(len(steps))) and len(steps) > before + 1
    assert metrics_of(tmp_path)
    for iteration in checkpoints(tmp_path):
        content = torch.load(tmp_path / f"model_{iteration:07d}.pth", weights_only=False)
        assert content["iteration"] == iteration
    ledger("full disk, later room", injected=1, survived=1, lost=0, seconds=[seconds])


@pytest.mark.slow
def test_disk_that_stays_full_ends_the_run_in_a_sentence(training: TinyTraining, tmp_path: Path, ledger: Ledger):
    process = training.start(tmp_path, *PERIODIC, "SOLVER.SAVE_RETRY_SECONDS", "2")
    wait_for(lambda: (tmp_path / "last_checkpoint").exists(), process)  # written after the first checkpoint
    limit_file_size(process, 10)
    printed, seconds = end(process, signal.SIGTERM, group=False)
    assert process.returncode == 2, printed[-3000:]
    assert "error: The last checkpoint could not be written in 2 s (" in printed
    last = (tmp_path / "last_checkpoint").read_text()
    assert torch.load(tmp_path / last, weights_only=False)["iteration"] == checkpoints(tmp_path)[-1]
    ledger("disk that stays full", injected=1, survived=1, lost=0, seconds=[seconds])


@pytest.mark.slow
def test_folder_that_vanishes_is_made_again(training: TinyTraining, tmp_path: Path, ledger: Ledger):
    output = tmp_path / "output"
    process = training.start(output, *PERIODIC)
    wait_for(lambda: checkpoints(output) == [3], process)
    os.rename(output, tmp_path / "moved")
    output.write_text("a file stands where the folder was")  # root writes to a read-only folder, but not into a file
    time.sleep(3)
    assert process.poll() is None
    output.unlink()
    start = time.monotonic()
    wait_for(lambda: checkpoints(output), process)
    seconds = time.monotonic() - start
    printed, _ = end(process, signal.SIGTERM, group=False)
    assert process.returncode == 143, printed[-3000:]
    saved = last_iteration(output)
    assert checkpoints(output)[-1] == saved
    assert (output / ".lock").exists() and (output / "log.txt").exists()
    shutil.rmtree(tmp_path / "moved")
    ledger("folder replaced by a file, then gone", injected=1, survived=1, lost=0, seconds=[seconds])
