"""Whether the compiled loops can be used: they need Numba, and float32 on a CPU."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


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
