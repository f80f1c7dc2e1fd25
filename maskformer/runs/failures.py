"""Errors as sentences and exit codes: a user's mistakes, and failures of the surroundings (memory, workers, processes).

An ``InputError`` ends a run with code 2 and a ``RunError`` with code 3, each with one line on the standard error.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from multiprocessing.queues import Queue
from typing import Any

from torch import distributed
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.utils.data import get_worker_info

from maskformer.structures import InputError, RunError

EXIT_INPUT_ERROR = 2
EXIT_RUN_ERROR = 3
EXIT_INTERRUPTED = 130  # what a shell gives for Ctrl-C
EXIT_TERMINATED = 143  # and for SIGTERM

_GO_ON = "What was saved is kept; go on with --resume."
# How allocators say it: the devices' (PyTorch's words), the CPU's, oneDNN's, the C++ library's, cuBLAS's.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|could not create a memory object|bad_alloc|_ALLOC_FAILED",
    re.IGNORECASE,
)
# A data worker that ends while it hands an image over breaks the connection before PyTorch notices that it has ended.
_HANDING_OVER = (ConnectionError, EOFError, FileNotFoundError)
_EXPLAINABLE = (RuntimeError, MemoryError, *_HANDING_OVER)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def explain(error: BaseException | None) -> str | None:
    """What happened and what to do, of an error that is a failure of the surroundings; None for any other.

    Args:
        error: what was caught, in the process where it was raised.
    """
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, ProcessExitedException):
        fate = f"was ended by {error.signal_name}" if error.signal_name else f"ended with code {error.exit_code}"
        return (
            f"Process {error.error_index} of this machine {fate} and so the others were stopped. SIGKILL that nobody "
            "sent comes from a lack of host memory: lower DATALOADER.NUM_WORKERS or SOLVER.IMS_PER_BATCH. " + _GO_ON
        )
    if isinstance(error, (InputError, ProcessRaisedException)) or not isinstance(error, _EXPLAINABLE):
        return None
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, _HANDING_OVER) else ()
    takes_over = any(frame.filename.endswith(os.path.join("multiprocessing", "reductions.py")) for frame in frames)
    if "DataLoader worker (pid" in str(error) or takes_over:
        return (
            "A process that loads images ended: most often host memory or shared memory (/dev/shm) did not suffice, or "
            "a library crashed on an image. Lower DATALOADER.NUM_WORKERS (0 loads in the training process, and shows a "
            "crash), lower INPUT.MIN_SIZE_TRAIN or SOLVER.IMS_PER_BATCH, or give containers more shared memory (docker "
            f"--shm-size). {_GO_ON}"
        )
    if is_out_of_memory(error):
        return (
            f"Out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}). Lower "
            "SOLVER.IMS_PER_BATCH in training, INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST in evaluation, or "
            f"DATALOADER.NUM_WORKERS. {_GO_ON}"
        )
    if isinstance(error, distributed.DistError):
        return f"The connection to another process of this run was lost ({str(error).splitlines()[0]}). {_GO_ON}"
    return None


def describe_image(example: dict[str, Any]) -> str:
    """Size, number of segments, and file of an image, as far as the example tells."""
    described = "x".join(str(length) for length in example["image"].shape[-2:]) if "image" in example else "an image"
    if "instances" in example:
        described += f" with {len(example['instances'])} segments"
    return f"{described} ({example['file_name']})" if "file_name" in example else described


def find_sentence(error: BaseException | None) -> tuple[int, str] | None:
    """The exit code and the sentence of a user's mistake or a failure of the surroundings; None of any other error.

    Args:
        error: what was caught. From another process (data worker, rank), its message holds that process's traceback.
    """
    kinds: tuple[type, ...] = (InputError, *InputError.__subclasses__())
    if isinstance(error, InputError):
        return EXIT_INPUT_ERROR, _last_sentence(error, kinds) or str(error).strip()
    if not isinstance(error, ProcessRaisedException):
        sentence = explain(error)
        return None if sentence is None else (EXIT_RUN_ERROR, sentence)
    if sentence := _last_sentence(error, kinds):
        return EXIT_INPUT_ERROR, sentence
    return (EXIT_RUN_ERROR, sentence) if (sentence := _last_sentence(error, (RunError,))) else None


def _last_sentence(error: BaseException, kinds: tuple[type, ...]) -> str | None:
    """What stands last in a message that holds a traceback, if it is an error of one of these kinds."""
    names = "|".join(re.escape(f"{kind.__module__}.{kind.__qualname__}") for kind in kinds)
    *_, last = re.split(rf"^(?:{names}): ", str(error), flags=re.MULTILINE)
    return None if last == str(error) else last.strip()


def report(error: BaseException) -> int | None:
    """Write what ended a run in a line on the standard error.

    Args:
        error: what was caught where the run was started.

    Returns:
        The exit code that says so; None of an error that nobody expects.
    """
    code = error.code if isinstance(error, SystemExit) else EXIT_INTERRUPTED
    if isinstance(error, ProcessExitedException):  # negative: ended by the signal itself, before it listened
        code = error.exit_code if error.exit_code >= 0 else 128 - error.exit_code
    is_interrupted = isinstance(error, (KeyboardInterrupt, SystemExit, ProcessExitedException))
    if is_interrupted and code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        sys.stderr.write("interrupted\n")
        return int(code)
    if (found := find_sentence(error)) is None:
        return None
    sys.stderr.write(f"error: {found[1]}\n")
    return found[0]


def end_workers_that_cannot_deliver() -> None:
    """Have a data worker end that cannot hand an image over, where Python lets it go on and the training wait for ever.

    Handing over goes through shared memory, which may be full. ``_on_queue_feeder_error`` is what Python has for
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
