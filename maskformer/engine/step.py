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
from .non_finite import (
    NonFiniteSteps,
    find_finite,
    find_non_finite_state,
    find_origin,
    restore,
    running_statistics,
)
from .optimizer import gradients_of, total_norm

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
        self.bad_steps = NonFiniteSteps(most_bad_steps)
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
        random_state, statistics = _random_state(self.accelerator), [buffer.clone() for buffer in self._statistics]
        self.optimizer.zero_grad()
        losses = self._backward(batch)
        self.after_backward()
        # Under a loss scaler, gradients that overflow are its business, and squares that do are not.
        norm = total_norm(gradients_of(self.optimizer), math.inf if self.scaler.is_enabled() else 2.0)
        finite = find_finite(losses.values(), self._statistics, norm)
        # One transfer to the host, where Detectron2 would make one for each loss.
        *values, losses_are_finite, gradients_are = torch.stack([*(x.float() for x in losses.values()), *finite]).cpu()
        losses = dict(zip(losses, values))
        if losses_are_finite and (gradients_are or self.scaler.is_enabled()):
            self.bad_steps.note_finite()
            self.write_metrics(losses, data_time, self.iter)
            self._update(is_overflow=not gradients_are)
        else:
            restore(self._statistics, statistics)
            self._note_non_finite_step(batch, losses, random_state)
            restore(self._statistics, statistics)  # the search for the origin has moved them, too
        get_event_storage().put_scalar("bad_steps", self.bad_steps.total, smoothing_hint=False)

    def _note_non_finite_step(self, batch: Batch, losses: dict[str, Tensor], random_state: Any) -> None:
        """Compute the step again to see where it goes wrong, with the random numbers that it had."""
        parts = split_batch(batch, self.accumulation_steps)

        def forward() -> None:
            for part in parts:
                with self._count_masks(parts), self.accelerator.autocast(self.half_precision):
                    self._own_model()(part)

        now = _random_state(self.accelerator)
        _set_random_state(self.accelerator, random_state)
        origin = find_origin(self._own_model(), forward)
        _set_random_state(self.accelerator, now)
        files = [str(example["file_name"]) for example in batch if "file_name" in example]
        names = [name for name, loss in losses.items() if not loss.isfinite()]
        learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        self.bad_steps.note_non_finite(self.iter, learning_rate, files, names, origin)

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
        masks = sum(len(example["instances"]) for part in parts for example in part if "instances" in example)
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        return masks_per_batch(getattr(model, "criterion", None), masks / len(parts))

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
                self.iter,
                self.skipped_steps,
            )
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
        """Detectron2's, with the scaler's state under the name that ``AMPTrainer`` gives it.

        It is asked for in all processes when a checkpoint is saved; they have the same model from then on.

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
        state = super().state_dict()
        state["bad_steps"] = self.bad_steps.state_dict()
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
            state["skipped_steps"] = self.skipped_steps
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run; one that was saved without a scaler starts with a new one."""
        super().load_state_dict(state_dict)
        if "bad_steps" in state_dict:
            self.bad_steps.load_state_dict(state_dict["bad_steps"])
        if self.scaler.is_enabled() and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
            self.skipped_steps = state_dict.get("skipped_steps", 0)


def pin(example: dict[str, Any]) -> dict[str, Any]:
    """A training example in pinned memory: its tensors, and those of its instances."""
    pinned = {name: _pin(value) for name, value in example.items()}
    if "instances" in example:
        instances = example["instances"]
        fields = {name: _pin(value) for name, value in instances.get_fields().items()}
        pinned["instances"] = Instances(instances.image_size, **fields)
    return pinned


def _pin(value: Any) -> Any:
    return value.pin_memory() if isinstance(value, (Tensor, SegmentMasks)) else value


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


def _random_state(accelerator: Accelerator) -> tuple[Tensor, Tensor | None]:
    """What the host's and the device's next random numbers follow from; nothing waits for the device."""
    return torch.get_rng_state(), accelerator.random_state()


def _set_random_state(accelerator: Accelerator, state: tuple[Tensor, Tensor | None]) -> None:
    of_host, of_device = state
    torch.set_rng_state(of_host)
    if of_device is not None:
        accelerator.set_random_state(of_device)
