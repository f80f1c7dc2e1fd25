"""Non-finite steps and states: recognised on the device, undone, explained, counted, never saved.

Everything that a non-finite step has touched is as before it: weights and optimiser, which it never reaches, and the
running statistics of normalisation layers, which its forward pass has moved.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn

from maskformer.structures import RunError

from .optimizer import NORM_MODULES

logger = logging.getLogger(__name__)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training changes: running means and variances of batch normalisation."""
    norms = [module for module in model.modules() if isinstance(module, NORM_MODULES)]
    return [buffer for module in norms for buffer in module.buffers(recurse=False)]


def restore(buffers: list[Tensor], values: list[Tensor]) -> None:
    """Give buffers the values that they had."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


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


class NonFiniteSteps:
    """Counts non-finite steps, logs each, and ends a run that meets nothing else.

    Args:
        most_in_a_row: the run stops after so many; SOLVER.MAX_BAD_STEPS.
    """

    def __init__(self, most_in_a_row: int):
        self.most_in_a_row = most_in_a_row
        self.total = 0
        self._in_a_row = 0

    def note_finite(self) -> None:
        """A step was taken."""
        self._in_a_row = 0

    def note_non_finite(
        self, iteration: int, learning_rate: float, files: list[str], losses: list[str], origin: str
    ) -> None:
        """A step was skipped, in all processes.

        Args:
            iteration: of the step.
            learning_rate: the largest.
            files: images of the step in this process.
            losses: names of the losses that are not finite here.
            origin: where the first number went wrong here, in words.

        Raises:
            RunError: it was the last one that is borne.
        """
        self.total += 1
        self._in_a_row += 1
        names = f"not finite: {', '.join(losses)}; " if losses else ""
        seen = f"images {', '.join(files) or 'without a file name'}; {names}{origin}"
        reports = comm.all_gather((bool(losses), seen))
        # A process whose losses are finite has its gradients from one whose losses are not.
        has_losses = any(has for has, _ in reports)
        described = "; ".join(sentence for has, sentence in reports if has or not has_losses)
        logger.warning(
            "Iteration %d: numbers are not finite, the step is skipped (%d in a row, %d so far). Learning rate %g; %s",
            iteration, self._in_a_row, self.total, learning_rate, described,
        )  # fmt: skip
        if self._in_a_row >= self.most_in_a_row:
            raise RunError(
                f"Training stopped at iteration {iteration}: {self._in_a_row} steps in a row "
                f"(SOLVER.MAX_BAD_STEPS) had numbers that are not finite. Learning rate {learning_rate:g}; "
                f"{described}. None of them touched the weights, and the last checkpoint is from before. Lower "
                "SOLVER.BASE_LR, enable SOLVER.CLIP_GRADIENTS, set SOLVER.AMP.PRECISION to bfloat16 if it is float16, "
                "or take other MODEL.WEIGHTS."
            )

    def state_dict(self) -> dict[str, int]:
        """Both counts."""
        return {"total": self.total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting."""
        self.total, self._in_a_row = state["total"], state["in_a_row"]


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
        return f"first bad result: module {wrong[0]}{_explain_weights(model, wrong[0])}"
    named = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None]
    bad = [name for name, gradient in named if not gradient.isfinite().all()]
    if bad:
        return f"the forward pass is finite, but {len(bad)} of {len(named)} gradients are not: {bad[-1]} is the latest"
    return "every result and gradient is finite by itself: the norm of all gradients overflows, or a running statistic"


def _explain_weights(model: nn.Module, name: str) -> str:
    module = dict(model.named_modules()).get(name, nn.Identity())
    weights = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    bad = [name for name, value in weights if not _is_finite(value)]
    return f", whose {bad[0]} is not finite itself" if bad else ""


def find_non_finite_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """The name of a weight, statistic or optimiser state that is not finite; None: all are.

    Args:
        model: as it would be saved.
        optimizer: of its parameters.
    """
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
