"""Processes that are given no more memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from processes_of import read_until
from tiny_training import TinyTraining

pytestmark = pytest.mark.slow


def starve(process: int) -> None:
    """Leave a process as much address space as it has, so that the next large allocation fails."""
    status = Path(f"/proc/{process}/statm").read_text().split()
    limit = int(status[0]) * resource.getpagesize()
    resource.prlimit(process, resource.RLIMIT_AS, (limit, limit))


def test_training_without_memory_ends_in_a_sentence(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None]
):
    large = ["INPUT.MIN_SIZE_TRAIN", "(512,)", "SOLVER.MAX_ITER", "1000", "SOLVER.IMS_PER_BATCH", "4"]
    process = training.start(tmp_path, *large)
    read_until(process, "Iteration: 0 ")
    starve(process.pid)
    printed, _ = process.communicate(timeout=120)
    last = printed.splitlines()[-1]
    ended = process.returncode == 3 and last.startswith("error: Out of memory on cpu in iteration ")
    ledger("no memory in a training step", injected=1, survived=int(ended), lost=0)
    assert ended, printed[-3000:]
    assert "with 4 images in this process (height x width): 512x640 with " in last
    assert "raise SOLVER.ACCUMULATION_STEPS" in last
    assert "Traceback" not in printed
