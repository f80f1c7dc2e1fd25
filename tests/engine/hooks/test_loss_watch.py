"""One warning each for trainings that cannot succeed, and none for those that do."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from detectron2.engine import TrainerBase
from torch import nn

from maskformer.engine.hooks.reports import LossWatch


class Losses(TrainerBase):
    """Says the loss that a function gives for the iteration; None: a skipped step."""

    def __init__(self, loss: Callable[[int], float | None]):
        super().__init__()
        self.loss = loss

    def run_step(self) -> None:
        if (loss := self.loss(self.iter)) is not None:
            self.storage.put_scalar("total_loss", loss)


def optimizer(rate: float, kind: type = torch.optim.AdamW) -> torch.optim.Optimizer:
    return kind([nn.Parameter(torch.zeros(1))], lr=rate)


def warnings_of(
    caplog: pytest.LogCaptureFixture,
    loss: Callable[[int], float | None],
    rate: float = 1e-4,
    steps: int = 400,
    **options,
) -> list[str]:
    trainer = Losses(loss)
    hook = LossWatch(options.get("optimizer") or optimizer(rate), max_iter=steps)
    trainer.register_hooks([hook])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer.train(0, steps)
    return [record.getMessage().partition(". Check SOLVER.BASE_LR")[0] for record in caplog.records]


def noisy(iteration: int) -> float:
    return (1.5, 0.7, 1.1, 0.9)[iteration % 4]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda i: noisy(i) * 40 / (1 + i), []),
        (lambda i: None if i % 3 else noisy(i) * 40 / (1 + i), []),
        (lambda i: noisy(i) * (10 if i < 60 else 250), ["The loss has grown from 10 to 250"]),
        (lambda i: noisy(i) * (10 if i < 60 else 1e-5), ["The loss has collapsed from 10 to 1e-05: are labels empty?"]),
        (lambda i: 3.0, ["The loss is 3 in each of 20 steps: nothing is learnt"]),
        (noisy, ["The loss has not fallen in 200 steps, from 1 to 1"]),
    ],
)
def test_each_course_of_the_loss_has_its_warning_once(caplog: pytest.LogCaptureFixture, loss, expected: list[str]):
    given = warnings_of(caplog, loss)
    assert len(given) == len(expected)
    for line, words in zip(given, expected):
        assert line.split(" to ")[0] == words.split(" to ")[0]


@pytest.mark.parametrize(
    ("rate", "kind", "warned"),
    [(0.01, torch.optim.AdamW, False), (0.02, torch.optim.AdamW, True), (0.02, torch.optim.SGD, False)],
)
def test_rate_that_adamw_does_not_bear_is_named(caplog: pytest.LogCaptureFixture, rate: float, kind, warned: bool):
    given = warnings_of(caplog, lambda i: 1.0 / (1 + i), optimizer=optimizer(rate, kind), steps=1)
    assert given == (["The learning rate is 0.02; AdamW rarely bears more than 0.01"] if warned else [])


def test_the_peak_of_the_schedule_counts(caplog: pytest.LogCaptureFixture):
    warming = optimizer(1.0)
    torch.optim.lr_scheduler.LambdaLR(warming, lambda _: 1e-6)
    assert "The learning rate is 1;" in warnings_of(caplog, lambda i: 1.0, optimizer=warming, steps=1)[0]


def test_what_was_seen_and_said_is_taken_up_again():
    hook = LossWatch(optimizer(1e-4), max_iter=100)
    trainer = Losses(lambda i: noisy(i) * (1 if i < 30 else 100))
    trainer.register_hooks([hook])
    trainer.train(0, 60)
    other = LossWatch(optimizer(1e-4), max_iter=100)
    other.load_state_dict(hook.state_dict())
    assert other.state_dict() == hook.state_dict()
    assert hook.state_dict()["start"] == pytest.approx(1.0)
    assert hook.state_dict()["given"] == ["growth"]
