"""Failures that are neither the user's mistake nor the code's, told in a sentence: memory, workers, processes."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any

from torch import distributed
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.utils.data import get_worker_info

from maskformer.engine.accelerator import Accelerator, is_out_of_memory
from maskformer.structures import InputError, RunError

EXIT_RUN_ERROR = 3

_GO_ON = "What was saved is kept; go on with --resume."
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) (?P<fate>[^.\n]*)")
_SHARED_MEMORY = re.compile(
    r"unable to (?:allocate|open|mmap|write|resize).*(?:shared memory|shm|/torch_)|Bus error|No space left.*/dev/shm",
)
# Words of gloo, of NCCL and its kin, and of the store at which processes meet.
_PEER_LOST = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Socket Timeout|remote process exited|"
    r"Timed out waiting|ncclRemoteError|Application timeout caused pair closure|recvValue failed|sendBytes failed",
    re.IGNORECASE,
)


# A data worker that ends while it hands an image over breaks the connection before PyTorch notices that it has ended.
_HANDING_OVER = (ConnectionError, EOFError, FileNotFoundError)
_EXPLAINABLE = (RuntimeError, MemoryError, *_HANDING_OVER)


def explain(error: BaseException) -> str | None:
    """What happened and what to do, of an error that is a failure of the surroundings; None for any other.

    Args:
        error: what was caught, in the process where it was raised.
    """
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, ProcessExitedException):
        return _explain_process(error)
    if isinstance(error, (InputError, ProcessRaisedException)) or not isinstance(error, _EXPLAINABLE):
        return None
    for explanation in (_explain_worker, _explain_shared_memory, _explain_memory, _explain_peer):
        if (sentence := explanation(error)) is not None:
            return sentence
    return None


def explained(main: Callable[..., Any]) -> Callable[..., Any]:
    """``main``, which raises a ``RunError`` where it would raise an error that ``explain`` knows."""

    @functools.wraps(main)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return main(*args, **options)
        except _EXPLAINABLE as error:
            sentence = explain(error)
            if sentence is None or isinstance(error, RunError):
                raise
            raise RunError(sentence) from error

    return run


@contextmanager
def explained_memory(batch: list[dict[str, Any]], iteration: int, accelerator: Accelerator) -> Iterator[None]:
    """In the ``with`` block, a lack of memory is told with what the step consists of.

    Args:
        batch: images of the step in this process.
        iteration: of the step.
        accelerator: where the step is computed.

    Raises:
        RunError: memory did not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sizes = ", ".join(describe_image(example) for example in batch)
        raise RunError(
            f"Out of memory on {accelerator.device} in iteration {iteration}, with {len(batch)} images in this process "
            f"(height x width): {sizes}. Lower SOLVER.IMS_PER_BATCH; or keep it and raise SOLVER.ACCUMULATION_STEPS, "
            "enable SOLVER.AMP, or make images smaller: INPUT.CROP, INPUT.MIN_SIZE_TRAIN, INPUT.MAX_SIZE_TRAIN. "
            f"{_GO_ON}"
        ) from error


def describe_image(example: dict[str, Any]) -> str:
    """Size, number of segments, and file of an image, as far as the example tells."""
    described = "x".join(str(length) for length in example["image"].shape[-2:]) if "image" in example else "an image"
    if "instances" in example:
        described += f" with {len(example['instances'])} segments"
    return f"{described} ({example['file_name']})" if "file_name" in example else described


def end_workers_that_cannot_deliver() -> None:
    """Have a data worker end that cannot hand an image over, where Python lets it go on and the training wait for ever.

    Handing over goes through shared memory, which may be full. ``_on_queue_feeder_error`` is what Python provides for
    subclasses; PyTorch chooses the class.
    """
    Queue._on_queue_feeder_error = staticmethod(_end_if_worker)  # type: ignore[attr-defined]


_report_feeder_error = Queue._on_queue_feeder_error  # type: ignore[attr-defined]


def _end_if_worker(error: BaseException, undelivered: Any) -> None:
    if get_worker_info() is None:
        _report_feeder_error(error, undelivered)
        return
    sys.stderr.write(f"A process that loads images cannot hand one over: {error}\n")
    sys.stderr.flush()
    os._exit(EXIT_RUN_ERROR)


def _explain_process(error: ProcessExitedException) -> str:
    fate = f"was ended by {error.signal_name}" if error.signal_name else f"ended with code {error.exit_code}"
    return (
        f"Process {error.error_index} of this machine {fate} and so the others were stopped. SIGKILL that nobody sent "
        f"comes from a lack of host memory: lower DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH. {_GO_ON}"
    )


def _explain_worker(error: BaseException) -> str | None:
    match = _WORKER.search(str(error))
    if match is not None:
        event = f"(pid {match['pids']}) {match['fate'].strip()}"
    elif isinstance(error, _HANDING_OVER) and _is_within(error, "torch/multiprocessing/reductions.py"):
        event = "ended while it handed one over"
    else:
        return None
    return (
        f"A process that loads images {event}: most often host memory or shared memory (/dev/shm) did not suffice, or "
        "a library crashed on an image. Lower DATALOADER.NUM_WORKERS (0 loads in the training process, and shows a "
        "crash), lower INPUT.MIN_SIZE_TRAIN or SOLVER.IMS_PER_BATCH, or give containers more shared memory (docker "
        f"--shm-size). {_GO_ON}"
    )


def _is_within(error: BaseException, file: str) -> bool:
    """Whether an error was raised in a file, or in what that called."""
    return any(
        frame.filename.replace(os.sep, "/").endswith(file) for frame in traceback.extract_tb(error.__traceback__)
    )


def _explain_shared_memory(error: BaseException) -> str | None:
    if _SHARED_MEMORY.search(str(error)) is None:
        return None
    return (
        "Shared memory (/dev/shm), through which loaded images are handed over, did not suffice: give the container "
        f"more (docker --shm-size), or lower DATALOADER.NUM_WORKERS (0 needs none). {_GO_ON}"
    )


def _explain_memory(error: BaseException) -> str | None:
    if not is_out_of_memory(error):
        return None
    return (
        f"Out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}). Lower "
        "SOLVER.IMS_PER_BATCH in training, INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST in evaluation, or "
        f"DATALOADER.NUM_WORKERS. {_GO_ON}"
    )


def _explain_peer(error: BaseException) -> str | None:
    if not distributed.is_available() or not distributed.is_initialized() or _PEER_LOST.search(str(error)) is None:
        return None
    return (
        f"Rank {distributed.get_rank()} lost the connection to another process of this run, and stops too; the log of "
        f"the other (log.txt.rank*) says why, unless it was killed. {_GO_ON}"
    )
