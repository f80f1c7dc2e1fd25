"""Errors as sentences and exit codes: a user's mistakes, and failures of the surroundings (memory, workers, processes).

An ``InputError`` ends a run with code 2 and a ``RunError`` with code 3, each with one line on the standard error.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
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
# How allocators say it: the devices' (PyTorch's words), the CPU's, cuBLAS's, oneDNN's, the C++ library's. Only CUDA's
# has a class of its own.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|could not create a memory object|std::bad_alloc|"
    r"_ALLOC_FAILED",
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


def explain(error: BaseException) -> str | None:
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
    if "DataLoader worker (pid" in str(error) or _is_of_handing_over(error):
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


def _is_of_handing_over(error: BaseException) -> bool:
    """Whether a connection was lost where PyTorch takes a tensor over from a data worker."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, _HANDING_OVER) and any(
        frame.filename.replace(os.sep, "/").endswith("torch/multiprocessing/reductions.py") for frame in frames
    )


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


def describe_image(example: dict[str, Any]) -> str:
    """Size, number of segments, and file of an image, as far as the example tells."""
    described = "x".join(str(length) for length in example["image"].shape[-2:]) if "image" in example else "an image"
    if "instances" in example:
        described += f" with {len(example['instances'])} segments"
    return f"{described} ({example['file_name']})" if "file_name" in example else described


def input_error_sentence(error: BaseException) -> str | None:
    """The sentence of an ``InputError``, also of one that another process (data worker, rank) raised.

    Args:
        error: what was caught. From another process, its message holds that process's traceback.

    Returns:
        The sentence, or None if the error is none of the user's.
    """
    if not isinstance(error, (InputError, ProcessRaisedException)):
        return None
    sentence = _last_sentence(error, (InputError, *InputError.__subclasses__()))
    return str(error).strip() if sentence is None and isinstance(error, InputError) else sentence


def run_error_sentence(error: BaseException) -> str | None:
    """The sentence of a failure that is no mistake of the user's, also of one in another process (rank).

    Args:
        error: what was caught.

    Returns:
        The sentence, or None if the error is no such failure.
    """
    return _last_sentence(error, (RunError,)) if isinstance(error, ProcessRaisedException) else explain(error)


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
    sentences = {EXIT_INPUT_ERROR: input_error_sentence(error), EXIT_RUN_ERROR: run_error_sentence(error)}
    for exit_code, sentence in sentences.items():
        if sentence is not None:
            sys.stderr.write(f"error: {sentence}\n")
            return exit_code
    return None


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
