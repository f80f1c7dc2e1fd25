"""The best checkpoint by a score of the evaluations."""

from __future__ import annotations

import logging
import math
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from maskformer.checkpoint import Checkpointer
from maskformer.runs.output_folder import tell

logger = logging.getLogger(__name__)


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
