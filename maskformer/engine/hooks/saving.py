"""When a training saves: periodically, at its end, at its best score, when a signal asks; again if the disk refuses."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm

from maskformer.checkpoint import Checkpointer
from maskformer.runs.output_folder import restore_output_folder, tell
from maskformer.runs.signals import Interrupted, StopFlag
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
        stop_flag: of the training's processes.
        retry_seconds: how long the last checkpoint is tried.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, stop_flag: StopFlag, retry_seconds: float):
        super().__init__(checkpointer, period)
        self._stop_flag = stop_flag
        self._retry_seconds = retry_seconds
        self._wait = 0  # steps from one try to the next, while the disk refuses
        self._left = 0  # of them
        self._last_saved = -1

    def after_step(self) -> None:
        """Save if it is time, and stop if a signal asked.

        Raises:
            Interrupted: it did; ``after_train`` saves.
            InputError: the last checkpoint cannot be written.
        """
        iteration, is_last = self.trainer.iter, self.trainer.iter + 1 >= self.trainer.max_iter
        self._left -= 1
        retry = self._wait > 0 and self._left <= 0
        is_asked = self._stop_flag.after_step(save=retry, is_last=is_last)
        if is_last:  # the evaluation that follows looks for signals itself
            self._save_in_time(lambda: self.step(iteration), self._retry_seconds)
        elif self._stop_flag.stop_signal:
            raise Interrupted(self._stop_flag.stop_signal)
        elif (iteration + 1) % self.period == 0:
            self._try_to_save(lambda: self.step(iteration))
        elif is_asked:
            self._try_to_save(self._save_now)

    def after_train(self) -> None:
        """Save the last finished step of a training that was asked to stop."""
        if not self._stop_flag.stop_signal or self.trainer.iter >= self.trainer.max_iter:
            return
        if self._last_saved != self.trainer.iter:
            self.trainer.running_hook = type(self).__qualname__  # an evaluation that was stopped is made again
            self._save_in_time(self._save_now, min(STOPPING_SECONDS, self._retry_seconds))
        logger.info(
            "Asked to stop by signal %d; iteration %d is saved: go on with --resume.",
            self._stop_flag.stop_signal, self.trainer.iter,
        )  # fmt: skip

    def _save_now(self) -> None:
        self.checkpointer.save(f"{self.file_prefix}_{self.trainer.iter:07d}", iteration=self.trainer.iter)

    def _try_to_save(self, save: Callable[[], None]) -> str:
        """Save; what went wrong in this process, "" if nothing."""
        problem = ""
        try:
            if comm.is_main_process():
                restore_output_folder(self.checkpointer.save_dir)
        except OSError as error:
            problem = str(error)
        try:
            if problem := comm.all_gather(problem)[0]:  # all processes learn of it: saving is done together
                raise OSError(problem)
            save()
        except OSError as error:
            is_first, self._wait = not self._wait, min(max(1, 2 * self._wait), RETRY_STEPS)
            self._left = self._wait
            sentence = f"Iteration {self.trainer.iter} is not saved ({error}); going on, and trying again."
            logger.error(sentence)
            if is_first:
                tell(sentence)
            return str(error)
        self._last_saved = self.trainer.iter
        self._wait = 0
        return ""

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


class BestCheckpoint(HookBase):
    """Saves ``model_best.pth``, from which a run resumes like from any other, at each score higher than all before.

    It stands after the hook that evaluates, and works in the same iterations. In difference to Detectron2's
    ``BestCheckpointer`` it goes on with the best score of a resumed run, and in several processes.

    Args:
        checkpointer: saves.
        metric: name of the score among the metrics, as "sem_seg/mIoU".
        period: iterations from one evaluation to the next; 0: there is only one, after training.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str, period: int):
        self.checkpointer = checkpointer
        self.metric = metric
        self.period = period
        self.best: tuple[float, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best score so far and its iteration."""
        return {} if self.best is None else {"metric": self.metric, "score": self.best[0], "iteration": self.best[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the best of the run that is resumed, if it was by the same metric."""
        if state["metric"] == self.metric:
            self.best = state["score"], state["iteration"]

    def after_step(self) -> None:
        """Look at a score when there is a new one."""
        finished = self.trainer.iter + 1
        if self.period > 0 and finished % self.period == 0 and finished != self.trainer.max_iter:
            self._compare()

    def after_train(self) -> None:
        """Look at the last score, unless the training failed."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._compare()

    def _compare(self) -> None:
        score, iteration = comm.all_gather(self._latest())[0]  # only the main process has scores
        if not math.isfinite(score) or (self.best is not None and score <= self.best[0]):
            return
        before, self.best = self.best, (score, iteration)
        logger.info("Best %s so far: %.4f after iteration %d.", self.metric, score, iteration)
        try:
            self.checkpointer.save("model_best")
        except OSError as error:
            self.best = before
            tell(f"{error}; the best weights before stay model_best.pth.")

    def _latest(self) -> tuple[float, int]:
        latest = self.trainer.storage.latest()
        if comm.is_main_process() and self.metric not in latest:
            scores = ", ".join(name for name in latest if "/" in name) or "none"
            logger.warning("TEST.BEST_METRIC is %r, but the evaluation gave: %s.", self.metric, scores)
        return latest.get(self.metric, (math.nan, 0))
