"""Hooks that measure and warn, and stop nothing but for too many bad images."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from maskformer.data.loading.train_loader import TrainLoader

from ..accelerator import Accelerator

logger = logging.getLogger(__name__)

MEGABYTE = 2**20
KEPT = 1000  # values of each metric: Detectron2's writers look at no more
PERIOD = 100  # steps between looks at how many there are

# AdamW moves a weight by about the learning rate a step, whatever its gradient; weights are some hundredths large, so
# that at this rate a few steps replace them. The recipes' largest rate is 0.001.
HIGHEST_RATE = 0.01
WINDOW = 20  # as Detectron2's writers; losses whose median is compared: single batches differ by a factor
GROWTH = 10.0  # times the loss of the start; in a warm-up of good recipes it does not even double
COLLAPSE = 1e-4  # of the loss of the start; the recipes end above a twentieth
STILL = 1e-6  # relative range of a window: even without learning, the losses of different images differ far more
PATIENCE = 2000  # steps after which a loss that has not fallen is worth a word; half the training if that is shorter
FALL = 0.98  # of the loss of the start


class AcceleratorHook(HookBase):
    """Select the accelerator before training, report it, and measure memory and speed on it.

    Writes into the event storage at each iteration, on every device: ``memory_in_use_mb`` and ``memory_peak_mb`` (of
    this process), and ``images_per_second`` (of all processes together). Detectron2 adds ``data_time`` itself.

    Args:
        accelerator: where the model is.
        images_per_step: over all processes.
    """

    def __init__(self, accelerator: Accelerator, *, images_per_step: int):
        self.accelerator = accelerator
        self.images_per_step = images_per_step
        self._step_start = 0.0

    def before_train(self) -> None:
        """Make the device current, and say in the log what it is."""
        self.accelerator.select(comm.get_local_rank())
        self.accelerator.reset_peak_memory()
        lines = (f"  {name}: {value}" for name, value in self.accelerator.describe().items())
        logger.info("Accelerator\n%s", "\n".join(lines))

    def before_step(self) -> None:
        """Start the clock."""
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        """Write what the step took."""
        seconds = time.perf_counter() - self._step_start
        memory = self.accelerator.memory()
        self.trainer.storage.put_scalars(
            memory_in_use_mb=memory.in_use / MEGABYTE,
            memory_peak_mb=memory.peak / MEGABYTE,
            images_per_second=self.images_per_step / seconds,
        )

    def after_train(self) -> None:
        """Say what the run needed at most."""
        peak = self.accelerator.memory().peak / MEGABYTE
        logger.info("Peak memory of this process on %s: %.0f MB", self.accelerator.device, peak)


class LRScheduler(hooks.LRScheduler):
    """Detectron2's, but the highest learning rate is reported.

    That of the largest group, which Detectron2 reports, may be a block's at the bottom of the backbone, or not yet
    warm. Checkpoints have the schedule's state under the name of this class, which is Detectron2's therefore.
    """

    def after_step(self) -> None:
        """Report the rate of the step, and set those of the next."""
        rate = max(group["lr"] for group in self.trainer.optimizer.param_groups)
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()


class LossWatch(HookBase):
    """Warns of a learning rate that AdamW does not bear, and of a loss that grows, collapses, stands still or stays.

    It reads the losses that are on the host already, in the process that has them: rank 0.

    Args:
        optimizer: whose rates it looks at.
        max_iter: steps of the whole training.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, max_iter: int):
        self._optimizer = optimizer
        self._patience = max(min(PATIENCE, max_iter // 2), 5 * WINDOW)
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._start: float | None = None
        self._last_iteration = -1
        self._given: set[str] = set()

    def before_train(self) -> None:
        """Look at the largest rate of the schedule, before it does harm."""
        rate = max(group.get("initial_lr", group["lr"]) for group in self._optimizer.param_groups)
        if isinstance(self._optimizer, torch.optim.AdamW) and rate > HIGHEST_RATE:
            self._warn("rate", f"The learning rate is {rate:g}; AdamW rarely bears more than {HIGHEST_RATE:g}")

    def after_step(self) -> None:
        """Look at the loss of the step, if it has one: a skipped step has not."""
        latest = self.trainer.storage.latest().get("total_loss")
        if latest is None or latest[1] <= self._last_iteration:
            return
        loss, self._last_iteration = latest
        self._recent.append(float(loss))
        if len(self._recent) < WINDOW:
            return
        median = statistics.median(self._recent)
        if self._start is None:
            self._start = median
        start = self._start
        if median > GROWTH * start:
            self._warn("growth", f"The loss has grown from {start:.3g} to {median:.3g}")
        if median < COLLAPSE * start:
            self._warn("collapse", f"The loss has collapsed from {start:.3g} to {median:.3g}: are labels empty?")
        if max(self._recent) - min(self._recent) <= STILL * abs(median):
            self._warn("still", f"The loss is {median:.6g} in each of {WINDOW} steps: nothing is learnt")
        elif self._last_iteration >= self._patience and not self._given & {"fall", "growth", "still"}:
            if median > FALL * start:
                steps = self._last_iteration
                self._warn("fall", f"The loss has not fallen in {steps} steps, from {start:.3g} to {median:.3g}")
            self._given.add("fall")  # one look at it is enough

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._given:
            self._given.add(kind)
            logger.warning("%s. Check SOLVER.BASE_LR and the dataset's labels.", message)

    def state_dict(self) -> dict[str, Any]:
        """The loss of the start, the last ones, and which warnings were given."""
        given = sorted(self._given)
        return {"start": self._start, "recent": list(self._recent), "last": self._last_iteration, "given": given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with the start of the run that is taken up."""
        self._start, self._last_iteration, self._given = state["start"], state["last"], set(state["given"])
        self._recent = deque(state["recent"], maxlen=WINDOW)


class HistoryHook(HookBase):
    """Forgets all but the latest values of each metric.

    Detectron2 keeps a million of each: some 2 KB a step, 1.5 GB in the 720,000 steps of a long recipe. What is written
    to files, and averages over the whole run, which are counted as values come, stay as they are.
    """

    def after_step(self) -> None:
        """Forget, once in a while."""
        if (self.trainer.iter + 1) % PERIOD:
            return
        for history in self.trainer.storage.histories().values():
            del history.values()[:-KEPT]


class BadImageReport(HookBase):
    """Writes ``bad_images``, how many different images of all processes were skipped, and stops at too many.

    Args:
        loader: counts those of this process.
    """

    def __init__(self, loader: TrainLoader):
        self.loader = loader

    def after_step(self) -> None:
        """Count, now and then."""
        if (self.trainer.iter + 1) % WINDOW == 0 or self.trainer.iter + 1 == self.trainer.max_iter:
            bad_images = all_bad_images(self.loader)
            self.trainer.storage.put_scalar("bad_images", len(bad_images), smoothing_hint=False)
            self.loader.check_bad_images(set(bad_images))


def all_bad_images(loader: TrainLoader) -> list[int]:
    """Indices of the images that were skipped in any process; each of them has to ask."""
    return sorted(set().union(*comm.all_gather(loader.bad_images)))
