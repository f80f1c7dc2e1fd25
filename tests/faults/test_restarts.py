"""torchrun starts a training again that has lost a process: it goes on by itself, and ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes_of import ranks_of, wait_until
from test_resume import EXACT, assert_same_run, losses_of, starts_of
from tiny_training import CONFIG, REPOSITORY, TINY, TinyTraining

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
    ledger("SIGKILL of a rank of torchrun, which starts all again", injected=1, survived=1, lost=0, seconds=[seconds])


@pytest.mark.slow
def test_job_of_slurm_trains_on_its_nodes_and_is_queued_again_if_it_has_got_on(training: TinyTraining, tmp_path: Path):
    """SLURM's commands are stand-ins: two nodes are two torchruns on this machine, with a process each."""
    output, commands = tmp_path / "output", tmp_path / "commands"
    commands.mkdir()
    variables = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    variables |= {"SLURM_JOB_NODELIST": "n[1-2]", "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(training.datasets)}

    def run(torchrun: str) -> int:
        srun = 'shift; "$@" & first=$!; "$@"; second=$?; wait $first && exit $second'
        scontrol = f'[ $1 = show ] && echo localhost || echo "$@" > {tmp_path}/requeued'
        for name, line in {"srun": srun, "scontrol": scontrol, "torchrun": torchrun}.items():
            (commands / name).write_text(f"#!/bin/bash\n{line}\n")
            (commands / name).chmod(0o755)
        job = ["bash", "examples/slurm.sbatch", CONFIG, str(output), *TINY, "SOLVER.MAX_ITER", "2"]
        environment = {**os.environ, **variables, "PATH": f"{commands}:{os.environ['PATH']}"}
        return subprocess.run(job, cwd=REPOSITORY, env=environment, check=False, timeout=400).returncode

    assert run(f'{sys.executable} -W ignore -m torch.distributed.run "$@"') == 0
    assert len(losses_of(output)) == 2
    assert (output / "log.txt.rank1").exists()
    assert run("exit 1") == 1
    assert not (tmp_path / "requeued").exists()
    assert run(f"touch -d '1 minute' {output}/last_checkpoint; exit 1") == 1
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
