"""torchrun starts a training again that has lost a process: it goes on by itself, and ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes_of import ranks_of, wait_until
from test_resume import EXACT, assert_same_run, losses_of, starts_of
from tiny_training import TinyTraining

TWO = ("--nproc-per-node", "2", "--max-restarts")


@pytest.mark.slow
def test_rank_that_is_killed_is_started_again_and_the_run_ends_like_one_that_never_was(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None]
):
    """Rank 0, which has the folder's lock. The checkpoint is of step 4; nobody says --resume."""
    training.run(tmp_path / "whole", "--num-gpus=2", *EXACT)
    killed = tmp_path / "killed"
    process = training.start(killed, *EXACT, torchrun=(*TWO, "1"))
    wait_until(lambda: len(losses_of(killed)) >= 6, 240)
    os.kill(ranks_of(process)[0], signal.SIGKILL)
    start = time.monotonic()
    wait_until(lambda: starts_of(killed) == 2, 240)
    seconds = time.monotonic() - start
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed[-3000:]
    assert "Starting training from iteration 4" in (killed / "log.txt").read_text()
    assert_same_run(killed, tmp_path / "whole")
    ledger("SIGKILL of a rank of torchrun", injected=1, survived=1, lost=0, seconds=[seconds])
