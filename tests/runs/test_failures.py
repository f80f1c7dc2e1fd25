"""Failures of the surroundings are recognised by what PyTorch really says."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import distributed
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.multiprocessing.reductions import rebuild_storage_fd
from torch.utils.data import DataLoader

from maskformer.runs.failures import (
    end_workers_that_cannot_deliver,
    explain,
    find_sentence,
    is_out_of_memory,
)
from maskformer.structures import InputError


class Suicidal(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGSEGV)
        return index


class Undeliverable(Suicidal):
    """Its items cannot be pickled, which fails where a full /dev/shm fails: in the thread that hands over."""

    def __getitem__(self, index: int) -> Any:
        return lambda: index


def told(work: Callable[..., Any], *args: Any) -> str | None:
    """What is said of the error that a function ends in."""
    with pytest.raises(Exception) as caught:
        work(*args)
    return explain(caught.value)


def too_large() -> torch.Tensor:
    return torch.empty(2**50)


def test_worker_that_crashes_is_told():
    assert (told(list, DataLoader(Suicidal(), num_workers=1)) or "").startswith("A process that loads images ended")


class _OfDeadWorker:
    """Stands in for the file descriptor that a worker offers, and for the moment at which it is killed."""

    def __init__(self, error: OSError | EOFError):
        self._error = error

    def detach(self) -> int:
        raise self._error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_worker_that_ends_while_it_hands_over_is_told(error: OSError | EOFError):
    sentence = told(rebuild_storage_fd, torch.UntypedStorage, _OfDeadWorker(error), 8) or ""
    assert sentence.startswith("A process that loads images ended") and "Lower DATALOADER.NUM_WORKERS" in sentence


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_connection_of_something_else_is_no_worker(error: OSError | EOFError):
    assert told(_OfDeadWorker(error).detach) is None


@pytest.fixture
def _handler() -> Iterator[None]:
    before = multiprocessing.queues.Queue.__dict__["_on_queue_feeder_error"]
    yield
    multiprocessing.queues.Queue._on_queue_feeder_error = before


@pytest.mark.usefixtures("_handler")
def test_worker_that_cannot_hand_over_is_told_instead_of_waited_for():
    end_workers_that_cannot_deliver()
    sentence = told(list, DataLoader(Undeliverable(), num_workers=1, batch_size=None, timeout=60)) or ""
    assert sentence.startswith("A process that loads images ended")


def test_memory_of_the_host_is_told():
    sentence = told(too_large) or ""
    assert "can't allocate memory" in sentence and "Lower SOLVER.IMS_PER_BATCH" in sentence


@pytest.mark.parametrize("error", [ValueError("out of memory"), InputError("no"), RuntimeError("shape mismatch")])
def test_other_errors_stay_as_they_are(error: Exception):
    assert explain(error) is None


def test_processes_that_end_are_told():
    killed = ProcessExitedException("text", 1, 99, -9, "SIGKILL")
    assert explain(killed).startswith("Process 1 of this machine was ended by SIGKILL and so the others were stopped.")
    assert "ended with code 3" in explain(ProcessExitedException("text", 0, 99, 3, None))
    assert explain(ProcessRaisedException("Connection closed by peer", 0, 99)) is None
    assert "NCCL error" in explain(distributed.DistBackendError("NCCL error: remote process exited\nmore"))


def test_memory_that_does_not_suffice_is_recognised_in_everyones_words():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("SDAA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(InputError("out of memory"))


def test_sentence_of_an_input_error_in_another_rank_is_found():
    for kind in ("InputError", "BadImageError"):
        traceback = (
            f"-- Process 1 terminated with the following error:\nTraceback\nmaskformer.structures.{kind}: Do X.\n"
        )
        assert find_sentence(ProcessRaisedException(traceback, 1, 1)) == (2, "Do X.")
    assert find_sentence(ProcessRaisedException("ValueError: a bug", 1, 1)) is None
