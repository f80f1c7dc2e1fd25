"""Hooks of the training loop: the accelerator's selection, report and measurements."""

from __future__ import annotations

import logging
import time

from detectron2.engine import HookBase

from ..accelerator import Accelerator

MEGABYTE = 2**20


class AcceleratorHook(HookBase):
    """Select the accelerator before training, report it, and measure memory and speed on it.

    Writes into the event storage at each iteration, on every device: ``memory_in_use_mb`` and ``memory_peak_mb`` (of
    this process), and ``images_per_second`` (of all processes together). Detectron2 adds ``data_time`` itself.

    Args:
        accelerator: where the model is.
        images_per_step: over all processes.
        local_rank: of this process on its machine.
    """

    def __init__(self, accelerator: Accelerator, *, images_per_step: int, local_rank: int = 0):
        self.accelerator = accelerator
        self.images_per_step = images_per_step
        self.local_rank = local_rank
        self._logger = logging.getLogger(__name__)
        self._step_start = 0.0

    def before_train(self) -> None:
        """Make the device current, and say in the log what it is."""
        self.accelerator.select(self.local_rank)
        self.accelerator.reset_peak_memory()
        lines = (f"  {name}: {value}" for name, value in self.accelerator.describe().items())
        self._logger.info("Accelerator\n%s", "\n".join(lines))

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
        self._logger.info("Peak memory of this process on %s: %.0f MB", self.accelerator.device, peak)
