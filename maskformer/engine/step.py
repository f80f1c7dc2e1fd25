"""One training step on any device: mixed precision, gradient accumulation, one transfer of the losses to the host."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskformer.engine.accelerator import Accelerator
from maskformer.losses import masks_per_batch
from maskformer.structures import InputError, SegmentMasks

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
    ):
        super().__init__(model, data_loader, optimizer)
        self.accelerator = accelerator
        self.half_precision = half_precision
        self.accumulation_steps = accumulation_steps
        self.scaler = accelerator.gradient_scaler(half_precision)
        self.skipped_steps = 0
        self._has_stepped = False
        optimizer.register_step_post_hook(self._note_step)

    def run_step(self) -> None:
        """Load, compute losses and gradients part by part, write the losses, update."""
        assert self.model.training, "the model was left in evaluation mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._backward(batch)
        self.after_backward()
        self._write_metrics(_to_host(losses), data_time)
        self._update()

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
        return masks_per_batch(masks / len(parts))

    def _update(self) -> None:
        """Step the optimiser, unless float16 gradients overflowed: then the scaler halves its scale instead."""
        self.scaler.unscale_(self.optimizer)  # before the optimiser's hooks clip
        self._has_stepped = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():
            self._report_scale()

    def _report_scale(self) -> None:
        storage = get_event_storage()
        if not self._has_stepped:
            self.skipped_steps += 1
            logging.getLogger(__name__).info(
                "Iteration %d: float16 gradients overflowed; the step is skipped (%d so far), the loss scale halved",
                self.iter,
                self.skipped_steps,
            )
        storage.put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)
        if not self._has_stepped or self.iter % SCALE_PERIOD == 0:  # reading the scale waits for the device
            storage.put_scalar("grad_scaler", self.scaler.get_scale(), smoothing_hint=False)

    def _note_step(self, *_: Any) -> None:
        self._has_stepped = True

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, with the scaler's state under the name that ``AMPTrainer`` gives it."""
        state = super().state_dict()
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
            state["skipped_steps"] = self.skipped_steps
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a run; one that was saved without a scaler starts with a new one."""
        super().load_state_dict(state_dict)
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
        InputError: a value of these keys is out of range.
    """
    solver = cfg.SOLVER
    if solver.ACCUMULATION_STEPS < 1:
        raise InputError(f"SOLVER.ACCUMULATION_STEPS is {solver.ACCUMULATION_STEPS}, expected 1 or more.")
    accelerator = Accelerator(cfg.MODEL.DEVICE)
    half_precision = accelerator.half_precision(solver.AMP.PRECISION) if solver.AMP.ENABLED else None
    if half_precision is not None:
        logging.getLogger(__name__).info("Mixed precision: %s on %s", half_precision, accelerator.type)
    return StepTrainer(
        model,
        data_loader,
        optimizer,
        accelerator=accelerator,
        half_precision=half_precision,
        accumulation_steps=solver.ACCUMULATION_STEPS,
    )


def _to_host(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """All losses in one transfer, where Detectron2 would make one for each."""
    values = torch.stack([loss.float() for loss in losses.values()]).cpu()
    return dict(zip(losses, values))
