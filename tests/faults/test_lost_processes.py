"""Data workers, ranks and launchers that are killed: the rest of the run ends in seconds, and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes_of import children, members, read_until, wait_until
from tiny_training import CONFIG, REPOSITORY, TINY, TinyTraining

pytestmark = pytest.mark.slow

REPETITIONS = int(os.environ.get("MASKFORMER_FAULT_REPETITIONS", "1"))
LONG = ["SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "100000"]
FIRST_STEPS = "Iteration: 1 "
SECONDS = 30  # that the rest of a run may take to end, on busy cores


def kill_and_wait(process: subprocess.Popen[str], victim: int) -> tuple[float, str]:
    """Seconds until no process of the run was left, and what was printed in them."""
    start = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    wait_until(lambda: not members(process.pid), 60)
    return time.monotonic() - start, printed


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_killed_data_worker_ends_the_training_in_a_sentence(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None], repetition: int
):
    process = training.start(tmp_path, *LONG, "DATALOADER.NUM_WORKERS", "2")
    read_until(process, FIRST_STEPS)
    seconds, printed = kill_and_wait(process, children(process.pid, process.pid)[-1])
    ended = process.returncode == 3 and "error: A process that loads images ended" in printed.splitlines()[-1]
    ledger("SIGKILL of a data worker", injected=1, survived=int(ended), lost=0, seconds=[seconds])
    assert ended, printed[-3000:]
    assert "Lower DATALOADER.NUM_WORKERS" in printed
    assert "Traceback" not in printed
    assert seconds < SECONDS


def can_shrink_shared_memory() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_shrink_shared_memory(), reason="needs the right to mount in a namespace of its own")
def test_full_shared_memory_ends_the_training_in_a_sentence(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None]
):
    command = [sys.executable, "-W", "ignore", "train_net.py", "--config-file", CONFIG, *TINY, *LONG]
    shrink = 'mount -t tmpfs -o size=160k tmpfs /dev/shm && exec "$@"'
    process = subprocess.run(
        ["unshare", "-m", "sh", "-c", shrink, "sh", *command, "DATALOADER.NUM_WORKERS", "1",
         "INPUT.MIN_SIZE_TRAIN", "(256,)", "OUTPUT_DIR", tmp_path],
        cwd=REPOSITORY, text=True, capture_output=True, check=False, timeout=120,
        env={**os.environ, "DETECTRON2_DATASETS": str(training.datasets), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    printed = process.stdout + process.stderr
    ended = process.returncode == 3 and "shared memory" in process.stderr.splitlines()[-1]
    ledger("/dev/shm full", injected=1, survived=int(ended), lost=0)
    assert ended, printed[-3000:]
    assert "Traceback" not in printed


# What a run of two processes is doing when one of them is killed, and the files of its folder that say so.
MOMENTS = {
    "training": ([], "metrics.json"),
    "saving": (["SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.KEEP_LAST", "2"], ".*.partial"),
}


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize(("moment", "rank"), [("training", 1), ("saving", 0)])
def test_killed_rank_ends_the_others(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None], moment: str, rank: int, repetition: int
):
    options, files = MOMENTS[moment]
    process = training.start(tmp_path, "--num-gpus=2", *LONG, *options)
    wait_until(lambda: any(tmp_path.glob(files)))
    seconds, printed = kill_and_wait(process, children(process.pid, process.pid)[rank])
    ended = process.returncode == 3 and printed.splitlines()[-1].startswith(f"error: Process {rank} of this machine")
    ledger(f"SIGKILL of a rank in {moment}", injected=1, survived=int(ended), lost=0, seconds=[seconds])
    assert ended, printed[-3000:]
    assert seconds < SECONDS


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_killed_launcher_leaves_no_orphan(
    training: TinyTraining, tmp_path: Path, ledger: Callable[..., None], repetition: int
):
    process = training.start(tmp_path, "--num-gpus=2", *LONG, "DATALOADER.NUM_WORKERS", "1")
    read_until(process, FIRST_STEPS)
    seconds, _ = kill_and_wait(process, process.pid)
    ledger("SIGKILL of the launcher", injected=1, survived=1, lost=0, seconds=[seconds])
    assert seconds < SECONDS
