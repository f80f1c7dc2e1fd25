"""Bounds what Detectron2's event storage remembers."""

from __future__ import annotations

from detectron2.engine import HookBase

KEPT = 1000  # values of each metric: Detectron2's writers look at no more
PERIOD = 100  # steps


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
