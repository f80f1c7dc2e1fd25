"""One training step on any device: mixed precision, gradient accumulation, one transfer of the losses to the host."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskformer.losses import masks_per_batch
from maskformer.runs.failures import describe_image, is_out_of_memory
from maskformer.structures import InputError, RunError, SegmentMasks

from .accelerator import Accelerator
from .hooks.averaging import share_state
from .non_finite import describe_everywhere, find_finite, find_non_finite_state, find_origin, running_statistics
from .optimizer import gradient_norm

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]
SCALE_PERIOD = 20  # iterations, as Detectron2's writers


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, for every device.

    Args:
        model: gives losses by name; may be wrapped in ``DistributedDataParallel``.
        data_loader: gives the images of one step in this process.
        optimizer: its own hooks clip gradients, after this class has unscaled them.
        accelerator: where the model is.
        half_precision: what products are computed in; None: float32.
        most_bad_steps: the training stops after so many steps in a row whose numbers are not finite.
        accumulation_steps: into how many parts the images of a step are divided. The gradient is what as many
            processes would give: the mean over parts, with the number of masks averaged over them.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        accelerator: Accelerator,
        half_precision: torch.dtype | None = None,
        accumulation_steps: int = 1,
        most_bad_steps: int = 10,
    ):
        super().__init__(model, data_loader, optimizer)
        self.accelerator = accelerator
        self.half_precision = half_precision
        self.accumulation_steps = accumulation_steps
        self.scaler = accelerator.gradient_scaler(half_precision)
        self.skipped_steps = 0
        self.bad_steps = {"total": 0, "in_a_row": 0}
        self.most_bad_steps = most_bad_steps
        self._batches: Iterator[Batch] | None = None  # begun with the first step: a resumed run moves the loader before
        self._statistics = running_statistics(model)

    def run_step(self) -> None:
        """Load, compute losses and gradients part by part, write the losses, update; or skip a non-finite step.

        Raises:
            RunError: memory does not suffice, or one non-finite step followed the other.
        """
        assert self.model.training, "the model was left in evaluation mode"
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batch = next(self._batches)
        data_time = time.perf_counter() - start
        try:
            self._compute_and_update(batch, data_time)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            sizes = ", ".join(describe_image(example) for example in batch)
            raise RunError(
                f"Out of memory on {self.accelerator.device} in iteration {self.iter}, with {len(batch)} images in "
                f"this process (height x width): {sizes}. Lower SOLVER.IMS_PER_BATCH; or keep it and raise "
                "SOLVER.ACCUMULATION_STEPS, enable SOLVER.AMP, or make images smaller: INPUT.CROP, "
                "INPUT.MIN_SIZE_TRAIN, INPUT.MAX_SIZE_TRAIN. What was saved is kept; go on with --resume."
            ) from error

    def _compute_and_update(self, batch: Batch, data_time: float) -> None:
        random_states, statistics = self.accelerator.random_states(), [buffer.clone() for buffer in self._statistics]
        self.optimizer.zero_grad()
        losses = self._backward(batch)
        self.after_backward()
        # Under a loss scaler, gradients that overflow are its business, and squares that do are not.
        norm = gradient_norm(self.optimizer, math.inf if self.scaler.is_enabled() else 2.0)
        finite = find_finite(losses.values(), self._statistics, norm)
        # One transfer to the host, where Detectron2 would make one for each loss.
        *values, losses_are_finite, gradients_are = torch.stack([*(x.float() for x in losses.values()), *finite]).cpu()
        losses = dict(zip(losses, values))
        if losses_are_finite and (gradients_are or self.scaler.is_enabled()):
            self.bad_steps["in_a_row"] = 0
            self.write_metrics(losses, data_time, self.iter)
            self._update(is_overflow=not gradients_are)
        else:
            self._restore_statistics(statistics)
            self._note_non_finite_step(self._find_origin(batch, random_states), batch, losses)
            self._restore_statistics(statistics)  # the search for the origin has moved them, too
        get_event_storage().put_scalar("bad_steps", self.bad_steps["total"], smoothing_hint=False)

    def _restore_statistics(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self._statistics, values, strict=True):
            buffer.copy_(value)

    def _find_origin(self, batch: Batch, random_states: dict[str, Any]) -> str:
        """Compute the step again to see where it goes wrong, with the random numbers that it had."""
        parts = split_batch(batch, self.accumulation_steps)

        def forward() -> None:
            for part in parts:
                with self._count_masks(parts), self.accelerator.autocast(self.half_precision):
                    self._own_model()(part)

        now = self.accelerator.random_states()
        self.accelerator.set_random_states(random_states)
        origin = find_origin(self._own_model(), forward)
        self.accelerator.set_random_states(now)
        return origin

    def _note_non_finite_step(self, origin: str, batch: Batch, losses: dict[str, Tensor]) -> None:
        """Count and log a step that all processes skip, or stop if it was the last one that is borne."""
        files = [str(example["file_name"]) for example in batch if "file_name" in example]
        described = describe_everywhere(files, [name for name, loss in losses.items() if not loss.isfinite()], origin)
        in_a_row, total = (count + 1 for count in (self.bad_steps["in_a_row"], self.bad_steps["total"]))
        self.bad_steps = {"total": total, "in_a_row": in_a_row}
        learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        logger.warning(
            "Iteration %d: numbers are not finite, the step is skipped (%d in a row, %d so far). Learning rate %g; %s",
            self.iter, in_a_row, total, learning_rate, described,
        )  # fmt: skip
        if in_a_row >= self.most_bad_steps:
            raise RunError(
                f"Training stopped at iteration {self.iter}: {in_a_row} steps in a row (SOLVER.MAX_BAD_STEPS) had "
                f"numbers that are not finite. Learning rate {learning_rate:g}; {described}. None of them touched the "
                "weights, and the last checkpoint is from before. Lower SOLVER.BASE_LR, enable SOLVER.CLIP_GRADIENTS, "
                "set SOLVER.AMP.PRECISION to bfloat16 if it is float16, or take other MODEL.WEIGHTS."
            )

    def _own_model(self) -> nn.Module:
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def release_data(self) -> None:
        """Let go of the loader's iterator: its workers end now, not when the process terminates them."""
        self._batches = None

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the step, and its losses: the mean over parts."""
        batch = [pin(example) for example in batch] if self.accelerator.reads_pinned_memory else batch
        parts = split_batch(batch, self.accumulation_steps)
        totals: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            is_last = index == len(parts) - 1
            with self._exchange_gradients(is_last), self._count_masks(parts):
                with self.accelerator.autocast(self.half_precision):
                    losses = self.model(part)
                self.scaler.scale(sum(losses.values()) / len(parts)).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach() / len(parts)
        return totals

    def _exchange_gradients(self, is_last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients once a step: with the last part."""
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _count_masks(self, parts: list[Batch]) -> AbstractContextManager[Any]:
        if len(parts) == 1:
            return contextlib.nullcontext()
        masks = [len(example["instances"]) for part in parts for example in part if "instances" in example]
        return masks_per_batch(getattr(self._own_model(), "criterion", None), masks, len(parts))

    def _update(self, *, is_overflow: bool) -> None:
        """Step the optimiser, unless float16 gradients overflowed: then the scaler halves its scale instead."""
        self.scaler.unscale_(self.optimizer)
        if not is_overflow:
            self.optimizer.step()
        if not self.scaler.is_enabled():
            return
        self.scaler.update()
        storage = get_event_storage()
        if is_overflow:
            self.skipped_steps += 1
            logger.info(
                "Iteration %d: float16 gradients overflowed; the step is skipped (%d so far), the loss scale halved",
                self.iter, self.skipped_steps,
            )  # fmt: skip
        storage.put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)
        if not is_overflow and self.iter % SCALE_PERIOD != 0:
            return
        scale = self.scaler.get_scale()  # waits for the device
        storage.put_scalar("grad_scaler", scale, smoothing_hint=False)
        if is_overflow and scale < 1:
            raise RunError(
                f"Training stopped at iteration {self.iter}: gradients are not finite at any loss scale, the "
                "losses are. No weight was touched. Set SOLVER.AMP.PRECISION to bfloat16, or SOLVER.AMP.ENABLED to "
                "False, where the first non-finite step is explained."
            )

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, asked for in all processes, which have the same model from then on.

        Raises:
            RunError: a weight, a statistic or the optimiser's state is not finite. So it is never saved.
        """
        model = self._own_model()
        share_state(model)
        if (name := find_non_finite_state(model, self.optimizer)) is not None:
            raise RunError(
                f"Nothing is saved after iteration {self.iter}: {name} is not finite. The last checkpoint is from "
                "before; lower SOLVER.BASE_LR or SOLVER.WEIGHT_DECAY."
            )
        state = {**super().state_dict(), "bad_steps": self.bad_steps}
        if not self.scaler.is_enabled():
            return state
        return {**state, "grad_scaler": self.scaler.state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run; one that was saved without a scaler starts with a new one."""
        super().load_state_dict(state_dict)
        self.bad_steps = {**self.bad_steps, **state_dict.get("bad_steps", {})}
        if self.scaler.is_enabled() and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
            self.skipped_steps = state_dict.get("skipped_steps", 0)


def pin(example: dict[str, Any]) -> dict[str, Any]:
    """A training example in pinned memory: its tensors, and those of its instances."""

    def pin_value(value: Any) -> Any:
        if isinstance(value, Instances):
            return Instances(value.image_size, **pin(value.get_fields()))
        return value.pin_memory() if isinstance(value, (Tensor, SegmentMasks)) else value

    return {name: pin_value(value) for name, value in example.items()}


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Divide a batch into parts of the same number of images, in order.

    Raises:
        InputError: the images cannot be divided evenly.
    """
    if len(batch) % num_parts:
        raise InputError(
            f"SOLVER.ACCUMULATION_STEPS is {num_parts}, but a process has {len(batch)} images a step; it must divide "
            "SOLVER.IMS_PER_BATCH over the number of processes."
        )
    size = len(batch) // num_parts
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, data_loader: Iterable[Batch], optimizer: torch.optim.Optimizer
) -> StepTrainer:
    """The step that ``SOLVER.AMP`` and ``SOLVER.ACCUMULATION_STEPS`` describe, on ``MODEL.DEVICE``.

    Raises:
        InputError: the device does not compute in the type that is asked for.
    """
    solver = cfg.SOLVER
    accelerator = Accelerator(cfg.MODEL.DEVICE)
    half_precision = accelerator.half_precision(solver.AMP.PRECISION) if solver.AMP.ENABLED else None
    if half_precision is not None:
        logger.info("Mixed precision: %s on %s", half_precision, accelerator.type)
    return StepTrainer(
        model,
        data_loader,
        optimizer,
        accelerator=accelerator,
        half_precision=half_precision,
        accumulation_steps=solver.ACCUMULATION_STEPS,
        most_bad_steps=solver.MAX_BAD_STEPS,
    )
