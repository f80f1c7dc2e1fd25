"""When a training saves: periodically, at its end, and when a signal asks; again and again if the disk refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm

from maskformer.runs.output_folder import Backoff, restore_output_folder, tell
from maskformer.runs.signals import Agreement, Interrupted
from maskformer.structures import InputError

logger = logging.getLogger(__name__)

RETRY_STEPS = 64  # a periodic checkpoint that failed is tried again after at most so many
STOPPING_SECONDS = 20  # for which a run that was asked to stop tries to save


class SavingHook(PeriodicCheckpointer):
    """Detectron2's, that outlives a disk that refuses, and that stops the training when a signal asks.

    A periodic checkpoint that cannot be written is tried again 1, 2, 4, ... steps later, with the state of that step.
    The last one is tried again every second, for ``retry_seconds``. All processes save at the same steps.

    Args:
        checkpointer: of the training; also in processes that write nothing.
        period: in steps.
        agreement: of the training's processes.
        retry_seconds: how long the last checkpoint is tried.
    """

    def __init__(self, checkpointer: DetectionCheckpointer, period: int, *, agreement: Agreement, retry_seconds: float):
        super().__init__(checkpointer, period)
        self._agreement = agreement
        self._retry_seconds = retry_seconds
        self._backoff = Backoff(RETRY_STEPS)
        self._last_saved = -1

    def after_step(self) -> None:
        """Save if it is time, and stop if a signal asked.

        Raises:
            Interrupted: it did; ``after_train`` saves.
            InputError: the last checkpoint cannot be written.
        """
        iteration, is_last = self.trainer.iter, self.trainer.iter + 1 >= self.trainer.max_iter
        retry = self._backoff.is_failing and self._backoff.is_due()
        is_asked = self._agreement.after_step(save=retry, is_last=is_last)
        if is_last:  # the evaluation that follows looks for signals itself
            self._save_in_time(lambda: self.step(iteration), self._retry_seconds)
        elif self._agreement.stop_signal:
            raise Interrupted(self._agreement.stop_signal)
        elif (iteration + 1) % self.period == 0:
            self._try_to_save(lambda: self.step(iteration))
        elif is_asked:
            self._try_to_save(self._save_now)

    def after_train(self) -> None:
        """Save the last finished step of a training that was asked to stop."""
        if not self._agreement.stop_signal or self.trainer.iter >= self.trainer.max_iter:
            return
        if self._last_saved != self.trainer.iter:
            self.trainer.running_hook = type(self).__qualname__  # an evaluation that was stopped is made again
            self._save_in_time(self._save_now, min(STOPPING_SECONDS, self._retry_seconds))
        logger.info(
            "Asked to stop by signal %d; iteration %d is saved: go on with --resume.",
            self._agreement.stop_signal,
            self.trainer.iter,
        )

    def _save_now(self) -> None:
        self.checkpointer.save(f"{self.file_prefix}_{self.trainer.iter:07d}", iteration=self.trainer.iter)

    def _try_to_save(self, save: Callable[[], None]) -> str:
        """Save; what went wrong in this process, "" if nothing."""
        try:
            self._restore_folder()
            save()
        except OSError as error:
            self._report(error)
            return str(error)
        self._last_saved = self.trainer.iter
        self._backoff.succeed()
        return ""

    def _restore_folder(self) -> None:
        """All processes learn of a failure: saving is something that they do together."""
        problem = ""
        try:
            if comm.is_main_process():
                restore_output_folder(self.checkpointer.save_dir)
        except OSError as error:
            problem = str(error)
        problem = comm.all_gather(problem)[0]
        if problem:
            raise OSError(problem)

    def _report(self, error: OSError) -> None:
        is_first = self._backoff.fail()
        sentence = f"Iteration {self.trainer.iter} is not saved ({error}); going on, and trying again."
        logger.error(sentence)
        if is_first:
            tell(sentence)

    def _save_in_time(self, save: Callable[[], None], seconds: float) -> None:
        """Save in all processes, again and again until it works or the time is over."""
        end = time.monotonic() + seconds
        while True:
            problem = self._try_to_save(save)
            problem, is_over = comm.all_gather((problem, time.monotonic() >= end))[0]  # the process that writes
            if not problem:
                return
            if is_over:
                raise InputError(
                    f"The last checkpoint could not be written in {seconds:.0f} s ({problem}). Make room, or "
                    "OUTPUT_DIR writable, and go on with --resume from the last good one."
                )
            time.sleep(min(1.0, seconds))
