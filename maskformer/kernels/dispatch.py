"""How work on a CPU is done: by compiled loops where they can be used, and independent pieces in threads of their own.

PyTorch lets its threads share each operator and wait for each other at its end. Where operators take some 50
microseconds, as in the pieces of the losses, waiting is half of the time; threads that each compute whole pieces do not
wait. docs/performance.md has the times.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")


def find_kernels(*tensors: Tensor) -> ModuleType | None:
    """The module of compiled loops, or None: the same is then computed by PyTorch's operators, which takes longer.

    Args:
        tensors: what is to be looped over.

    Returns:
        ``maskformer.kernels.loops`` if Numba is installed and all tensors are float32 on a CPU, in a place without
        gradients.
    """
    return import_loops() if all(_suits(tensor) for tensor in tensors) else None


def _suits(tensor: Tensor) -> bool:
    wants_gradient = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not wants_gradient


def import_loops() -> ModuleType | None:
    """``maskformer.kernels.loops``, compiled; None, said once, if Numba is not installed."""
    # At first use: importing Numba takes as long as a tenth of importing PyTorch, and not every run computes on a CPU.
    return importlib.import_module("maskformer.kernels.loops") if _has_numba() else None


@functools.cache
def _has_numba() -> bool:
    try:
        importlib.import_module("numba")
    except ImportError as error:
        logger.warning("Losses and inference on a CPU take longer without Numba (%s): pip install numba", error)
        return False
    return True


def best_classes(scores: Tensor) -> Tensor:
    """(...) the class, the lower of equal ones, with the largest of (K,...) scores."""
    kernels = find_kernels(scores)
    if kernels is None:
        return scores.max(0).indices  # not argmax, which is slower on a CPU
    labels = torch.empty(scores.shape[1:], dtype=torch.int32)
    kernels.write_best_classes(scores.flatten(1).contiguous().numpy(), labels.view(-1).numpy())
    return labels


def for_each(work: Callable[[_Item], None], items: Sequence[_Item], device: torch.device) -> None:
    """Call a function with each item, without gradients; on a CPU at once in as many threads as PyTorch has.

    Args:
        work: may write to tensors, each call to places of its own; its operators use one thread.
        items: what to call it with; fewer than PyTorch has threads are worked on in turn, by all threads together.
        device: where the tensors are.
    """
    num_threads = torch.get_num_threads() if device.type == "cpu" else 1
    if 1 < num_threads <= len(items):
        mode = torch.inference_mode(torch.is_inference_mode_enabled())  # which is of this thread alone
        for _ in _pool(num_threads, os.getpid()).map(mode(torch.no_grad()(work)), items):
            pass
        return
    with torch.no_grad():
        for item in items:
            work(item)


@functools.lru_cache(maxsize=1)
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001  a forked process has no threads
    pool = ThreadPoolExecutor(num_threads, "maskformer", initializer=_compute_alone)
    all_there = threading.Barrier(num_threads)
    for _ in pool.map(lambda _: all_there.wait(), range(num_threads)):
        pass
    torch.set_num_threads(num_threads)  # what threads of others begin with
    return pool


def _compute_alone() -> None:
    torch.get_num_threads()  # with this PyTorch gives a new thread its own number, which would undo the next line
    torch.set_num_threads(1)
