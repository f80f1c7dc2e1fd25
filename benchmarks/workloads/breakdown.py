"""Where the time of our training step goes, and how near it is to what the machine can compute."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler import record_function
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from maskformer.engine.accelerator import Accelerator
from maskformer.engine.optimizer import build_optimizer
from maskformer.runs.launch import keep_freed_memory

from .models import build_ours
from .training import draw, load_step_config, repeat_step

LOSSES = "losses and matcher"
OPTIMIZER = "optimizer"
# Part -> what the names of its operations contain. The first that fits counts.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "convolution": ("conv",),
    "attention": ("scaled_dot_product", "_softmax", "flash"),
    "matrix products": ("mm", "linear", "matmul", "einsum"),
    "normalisation": ("norm",),
}
OTHER = "copies and other"
PRODUCTS = ("convolution", "matrix products")
PEAK_SIZE = 2048  # rows and columns of the matrices that show what the machine can do
PEAK_ROUNDS = 5


def set_up(
    *,
    size: Sequence[int] = (512, 512),
    batch: int = 2,
    masks: int = 10,
    precision: str = "float32",
    device: str = "cpu",
    peak_size: int = PEAK_SIZE,
    **sizes: Any,
) -> Callable[[], dict[str, float]]:
    """A unit is one step, one profiled step, and a measurement of the machine's peak.

    Its time is the first step's. It returns the profiled seconds of each part; ``share outside products``: the share
    of the profiled step that is neither convolution nor matrix product, wherever these are; ``share of peak``:
    the step's floating-point operations over its time and the measured peak.

    Args:
        size: (H,W) of the images.
        batch: B.
        masks: G of each image.
        precision: see ``load_step_config``.
        device: see ``Accelerator``.
        peak_size: rows and columns of the matrices of the peak's measurement.
        sizes: see ``load_step_config``.
    """
    cfg = load_step_config(device=device, precision=precision, **sizes)
    accelerator = Accelerator(device)
    keep_freed_memory()
    model = build_ours(cfg).train()
    _mark(model.criterion)
    step = repeat_step(cfg, model, build_optimizer(cfg, model), draw(cfg, size, batch, masks))
    flops = count_flops(step)
    dtype = torch.float32 if precision == "float32" else accelerator.half_precision(precision)

    def unit() -> dict[str, float]:
        seconds = _time(step, accelerator)
        peak = measure_peak(accelerator, dtype, peak_size)
        parts, outside = profile_parts(step, accelerator)
        return {
            "seconds": seconds,
            "share outside products": outside,
            "share of peak": flops / seconds / peak,
            "peak, GFLOP/s": peak / 1e9,
            "step, GFLOP": flops / 1e9,
            **{f"profiled: {name}": value for name, value in parts.items()},
        }

    return unit


def _time(step: Callable[[], Any], accelerator: Accelerator) -> float:
    accelerator.synchronize()
    begin = time.perf_counter()
    step()
    accelerator.synchronize()
    return time.perf_counter() - begin


def count_flops(step: Callable[[], Any]) -> float:
    """Floating-point operations of a step's convolutions, matrix products and attention, two for a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def measure_peak(accelerator: Accelerator, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second in the fastest of a few products of square matrices."""
    left, right = (torch.randn(size, size, dtype=dtype, device=accelerator.device) for _ in range(2))
    fastest = min(_time(lambda: left @ right, accelerator) for _ in range(PEAK_ROUNDS))
    return 2 * size**3 / fastest


def _mark(criterion: nn.Module | torch.Tensor) -> None:
    """Have a module's forward pass show in a profile, under the name of its part."""
    assert isinstance(criterion, nn.Module)
    forward = criterion.forward

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(LOSSES):
            return forward(*args, **kwargs)

    criterion.forward = marked


def profile_parts(step: Callable[[], Any], accelerator: Accelerator) -> tuple[dict[str, float], float]:
    """Seconds of each part of a step, and the share of it outside convolutions and matrix products."""
    with profile() as recorded:
        seconds = _time(step, accelerator)
    # An accelerator's own events repeat the times of the operators that they belong to.
    events = [event for event in recorded.events() or [] if event.device_type == DeviceType.CPU]
    in_losses = {e.sequence_nr for e in events if e.sequence_nr >= 0 and _is_within(e, LOSSES)}
    parts: dict[str, float] = defaultdict(float)
    products = 0.0
    for event in events:
        amount = (event.self_cpu_time_total if accelerator.type == "cpu" else event.self_device_time_total) / 1e6
        operation = classify_operation(event.name)
        products += amount if operation in PRODUCTS else 0.0
        parts[_part_of(event, operation, in_losses)] += amount
    return dict(parts), 1 - products / max(seconds, products)


def classify_operation(name: str) -> str:
    """The part of a step that an operation's name tells of; ``OTHER`` where it tells nothing."""
    name = name.lower()
    return next((part for part, words in OPERATIONS.items() if any(word in name for word in words)), OTHER)


def _part_of(event: Any, operation: str, in_losses: set[int]) -> str:
    """Losses and optimizer are parts with all that they call; elsewhere it is the operation that counts."""
    while event is not None:
        if event.name == LOSSES or (event.name.startswith("autograd::") and event.sequence_nr in in_losses):
            return LOSSES
        if event.name.startswith("Optimizer."):
            return OPTIMIZER
        event = event.cpu_parent
    return operation


def _is_within(event: Any, scope: str) -> bool:
    while event is not None:
        if event.name == scope:
            return True
        event = event.cpu_parent
    return False
