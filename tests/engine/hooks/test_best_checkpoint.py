from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase, TrainerBase
from torch import nn

from maskformer.checkpoint import Checkpointer
from maskformer.engine.hooks.saving import BestCheckpoint


class Scored(HookBase):
    """Puts one score after every second step."""

    def __init__(self, scores: list[float]):
        self.scores = iter(scores)

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % 2 == 0 and self.trainer.iter + 1 < self.trainer.max_iter:
            self.put()

    def after_train(self) -> None:
        self.put()

    def put(self) -> None:
        self.trainer.storage.put_scalar("sem_seg/mIoU", next(self.scores), smoothing_hint=False)


class Stepping(TrainerBase):
    """Its weight is the number of steps made."""

    def __init__(self, folder: Path, scores: list[float], metric: str = "sem_seg/mIoU"):
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.best = BestCheckpoint(Checkpointer(self.model, str(folder)), metric, period=2)
        self.register_hooks([Scored(scores), self.best])

    def run_step(self) -> None:
        with torch.no_grad():
            self.model.weight += 1


def steps_of_best(folder: Path) -> float:
    return torch.load(folder / "model_best.pth", weights_only=True)["model"]["weight"].item()


@pytest.mark.parametrize(
    ("scores", "steps"), [([1, 3, 2, 2], 4), ([1, 2, 3, 4], 8), ([3, 3, 3, 3], 2), ([math.nan, 1, math.inf, 0], 4)]
)
def test_best_is_the_first_of_the_highest_finite_scores(scores: list[float], steps: int, tmp_path: Path):
    Stepping(tmp_path, scores).train(0, 8)
    assert steps_of_best(tmp_path) == steps


def test_resumed_run_goes_on_with_the_best_score(tmp_path: Path):
    first = Stepping(tmp_path, [5, 4])
    first.train(0, 4)
    again = Stepping(tmp_path, [4, 4])
    again.best.load_state_dict(first.best.state_dict())
    again.train(4, 8)
    assert steps_of_best(tmp_path) == 2
    other = Stepping(tmp_path, [4, 4])
    other.best.load_state_dict({**first.best.state_dict(), "metric": "panoptic_seg/PQ"})
    assert other.best.best is None


def test_metric_that_no_evaluation_gives_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Stepping(tmp_path, [1, 2], metric="mIoU").train(0, 4)
    assert "TEST.BEST_METRIC is 'mIoU', but the evaluation gave: sem_seg/mIoU." in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_failed_training_is_not_judged(tmp_path: Path):
    class Failing(Stepping):
        def run_step(self) -> None:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Failing(tmp_path, [1]).train(0, 1)
    assert not (tmp_path / "model_best.pth").exists()
