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

from maskformer.losses import masks_per_batch
from maskformer.runs.failures import explained_memory
from maskformer.structures import InputError, RunError, SegmentMasks

from .accelerator import Accelerator
from .bad_steps import BadStep, BadSteps, RunningStatistics, all_finite, find_origin, find_poison
from .hooks.averaging import agree_on_state
from .optimizer import gradients_of, known_norm, total_norm

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
        self.bad_steps = BadSteps(most_bad_steps)
        self._statistics = RunningStatistics(model)
        self._has_stepped = False
        optimizer.register_step_post_hook(self._note_step)

    def run_step(self) -> None:
        """Load, compute losses and gradients part by part, write the losses, update; or skip a bad step.

        Raises:
            RunError: memory does not suffice, or one bad step followed the other.
        """
        assert self.model.training, "the model was left in evaluation mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with explained_memory(batch, self.iter, self.accelerator):
            self._compute_and_update(batch, data_time)

    def _compute_and_update(self, batch: Batch, data_time: float) -> None:
        random_state, statistics = _random_state(self.accelerator), self._statistics.copy()
        self.optimizer.zero_grad()
        losses = self._backward(batch)
        self.after_backward()
        norm = self._norm()
        finite = all_finite(losses.values(), self._statistics.copy(), norm)
        losses, is_finite = _to_host(losses, finite)
        if is_finite:
            self.bad_steps.note_good()
            self._write_metrics(losses, data_time)
            self._update(norm)
        else:
            self._statistics.restore(statistics)
            self._note_bad_step(batch, losses, random_state)
            self._statistics.restore(statistics)  # the search for the origin has moved them, too
        get_event_storage().put_scalar("bad_steps", self.bad_steps.total, smoothing_hint=False)

    def _norm(self) -> Tensor | None:
        """The 2-norm of all gradients; None where there are none, or a loss scaler will still divide them."""
        gradients = [] if self.scaler.is_enabled() else gradients_of(self.optimizer)
        return total_norm(gradients) if gradients else None

    def _note_bad_step(self, batch: Batch, losses: dict[str, Tensor], random_state: Any) -> None:
        """Compute the step again to see where it goes wrong, with the random numbers that it had."""
        parts = split_batch(batch, self.accumulation_steps)
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

        def forward() -> None:
            for part in parts:
                with self._count_masks(parts), self.accelerator.autocast(self.half_precision):
                    model(part)

        now = _random_state(self.accelerator)
        _set_random_state(self.accelerator, random_state)
        origin = find_origin(model, forward)
        _set_random_state(self.accelerator, now)
        files = [str(example["file_name"]) for example in batch if "file_name" in example]
        names = [name for name, loss in losses.items() if not loss.isfinite()]
        learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        self.bad_steps.note_bad(self.iter, learning_rate, BadStep(files, names, origin))

    def release_data(self) -> None:
        """Let go of the loader's iterator: its workers end now, not when the process terminates them."""
        self._data_loader_iter_obj = None

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

    def _update(self, norm: Tensor | None) -> None:
        """Step the optimiser, unless float16 gradients overflowed: then the scaler halves its scale instead.

        Args:
            norm: see ``known_norm``.
        """
        self.scaler.unscale_(self.optimizer)  # before the optimiser's hooks clip
        self._has_stepped = False
        with known_norm(norm):
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
        if self._has_stepped and self.iter % SCALE_PERIOD != 0:
            return
        scale = self.scaler.get_scale()  # waits for the device
        storage.put_scalar("grad_scaler", scale, smoothing_hint=False)
        if not self._has_stepped and scale < 1:
            raise RunError(
                f"Training stopped at iteration {self.iter}: gradients are not finite at any loss scale, the "
                "losses are. No weight was touched. Set SOLVER.AMP.PRECISION to bfloat16, or SOLVER.AMP.ENABLED to "
                "False, where the first bad step is explained."
            )

    def _note_step(self, *_: Any) -> None:
        self._has_stepped = True

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, with the scaler's state under the name that ``AMPTrainer`` gives it.

        It is asked for in all processes when a checkpoint is saved; they have the same model from then on.

        Raises:
            RunError: a weight, a statistic or the optimiser's state is not finite. So it is never saved.
        """
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        agree_on_state(model)
        if (poison := find_poison(model, self.optimizer)) is not None:
            raise RunError(
                f"Nothing is saved after iteration {self.iter}: {poison} is not finite. The last checkpoint is from "
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
        InputError: a value of these keys is out of range.
    """
    solver = cfg.SOLVER
    if solver.ACCUMULATION_STEPS < 1:
        raise InputError(f"SOLVER.ACCUMULATION_STEPS is {solver.ACCUMULATION_STEPS}, expected 1 or more.")
    if solver.MAX_BAD_STEPS < 1:
        raise InputError(f"SOLVER.MAX_BAD_STEPS is {solver.MAX_BAD_STEPS}, expected 1 or more.")
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
        most_bad_steps=solver.MAX_BAD_STEPS,
    )


def _to_host(losses: dict[str, Tensor], finite: Tensor) -> tuple[dict[str, Tensor], bool]:
    """All losses and whether the step is finite in one transfer, where Detectron2 would make one for each loss."""
    *values, is_finite = torch.stack([*(loss.float() for loss in losses.values()), finite]).cpu()
    return dict(zip(losses, values)), bool(is_finite)


def _random_state(accelerator: Accelerator) -> tuple[Tensor, Tensor | None]:
    """What the host's and the device's next random numbers follow from; nothing waits for the device."""
    return torch.get_rng_state(), accelerator.random_state()


def _set_random_state(accelerator: Accelerator, state: tuple[Tensor, Tensor | None]) -> None:
    of_host, of_device = state
    torch.set_rng_state(of_host)
    if of_device is not None:
        accelerator.set_random_state(of_device)
