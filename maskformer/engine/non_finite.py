"""Non-finite steps and states: recognised on the device, undone, explained, never saved.

Everything that a non-finite step has touched is as before it: weights and optimiser, which it never reaches, and the
running statistics of normalisation layers, which its forward pass has moved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn

from .optimizer import NORM_MODULES


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training changes: running means and variances of batch normalisation."""
    norms = [module for module in model.modules() if isinstance(module, NORM_MODULES)]
    return [buffer for module in norms for buffer in module.buffers(recurse=False)]


def find_finite(losses: Iterable[Tensor], statistics: list[Tensor], norm: Tensor) -> Tensor:
    """Whether a step may be taken, the same answer in every process.

    The norm of the gradients is what is looked at: AdamW would keep squares that overflow, too.

    Args:
        losses: scalars.
        statistics: see ``running_statistics``.
        norm: of all gradients together, a scalar.

    Returns:
        (2,) float32 on the device: 1 or 0 of losses and statistics, and of the gradients.
    """
    values = [torch.stack([loss.float() for loss in losses]).sum()[None]]
    values += [buffer.flatten().float() for buffer in statistics if buffer.is_floating_point()]
    finite = torch.stack([torch.cat(values).isfinite().all(), norm.isfinite()]).float()
    if comm.get_world_size() > 1:
        distributed.all_reduce(finite, distributed.ReduceOp.MIN)
    return finite


def describe_everywhere(files: list[str], losses: list[str], origin: str) -> str:
    """What all processes say of a non-finite step; each of them has to ask.

    Args:
        files: images of the step in this process.
        losses: names of the losses that are not finite here.
        origin: where the first number went wrong here, in words.
    """
    names = f"not finite: {', '.join(losses)}; " if losses else ""
    reports = comm.all_gather((bool(losses), f"images {', '.join(files) or 'without a file name'}; {names}{origin}"))
    # A process whose losses are finite has its gradients from one whose losses are not.
    has_losses = any(has for has, _ in reports)
    return "; ".join(sentence for has, sentence in reports if has or not has_losses)


def find_origin(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Say where the first number goes wrong: in an input, a weight, a module's result, or only in the gradients.

    Args:
        model: with the gradients of the step, and without ``DistributedDataParallel``.
        forward: runs the step's forward pass once more. It is never cut short: other processes run it too.
    """
    wrong: list[str] = []

    def look(name: str, _: nn.Module, __: Any, result: Any) -> None:
        if not _is_finite(result):
            wrong.append(name)

    hooks = [
        module.register_forward_hook(functools.partial(look, name or "of the losses"))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    if wrong:
        module = dict(model.named_modules()).get(wrong[0], nn.Identity())
        weights = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        bad = [name for name, value in weights if not _is_finite(value)]
        explained = f", whose {bad[0]} is not finite itself" if bad else ""
        return f"first bad result: module {wrong[0]}{explained}"
    named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    bad = [name for name, gradient in named if not gradient.isfinite().all()]
    if bad:
        return f"the forward pass is finite, but {len(bad)} of {len(named)} gradients are not: {bad[-1]} is the latest"
    return "every result and gradient is finite by itself: the norm of all gradients overflows, or a running statistic"


def find_non_finite_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """The name of a weight, statistic or optimiser state that is not finite; None: all are."""
    named = model.state_dict()
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        name = names.get(parameter, "a parameter")
        named |= {f"{key} of {name}": value for key, value in state.items() if isinstance(value, Tensor)}
    return next((name for name, value in named.items() if not value.isfinite().all()), None)


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(_is_finite(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_finite(part) for part in value)
    return not is_dataclass(value) or all(_is_finite(part) for part in vars(value).values())
