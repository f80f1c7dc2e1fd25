"""Steps with numbers gone wrong leave no trace but a count and a line in the log."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from maskformer.engine.accelerator import Accelerator
from maskformer.engine.non_finite import find_finite, find_non_finite_state
from maskformer.engine.optimizer import clip_full_model
from maskformer.engine.step import StepTrainer
from maskformer.structures import RunError

BATCH = [{"image": torch.ones(3, 2, 2), "file_name": "a.jpg"}, {"image": torch.ones(3, 2, 2), "file_name": "b.jpg"}]


class Small(nn.Module):
    """Batch normalisation, dropout and a line; in some calls a function spoils what the line gives."""

    def __init__(self, spoil: Callable[[Tensor], Tensor], calls: set[int]):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.line = nn.Linear(4, 1)
        self.spoiler = nn.Identity()
        self.seen: list[Tensor] = []
        self.calls = 0

        def hook(_: nn.Module, __: tuple, result: Tensor) -> Tensor:
            bad = self.calls in calls or (self.calls - 1 in calls and not torch.is_grad_enabled())
            return spoil(result) if bad else result

        self.spoiler.register_forward_hook(hook)

    def forward(self, batch: list) -> dict[str, Tensor]:
        shown = self.dropout(self.norm(torch.arange(len(batch) * 12.0).view(-1, 4)))
        self.seen.append(shown.detach())
        loss = self.spoiler(self.line(shown)).square().mean()
        self.calls += torch.is_grad_enabled()
        return {"loss": loss, "other": loss * 0}


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


SPOILERS = {
    "NaN in the loss": lambda x: x * torch.nan,
    "infinity in the loss": lambda x: x + torch.inf,
    "infinite gradient": InfiniteGradient.apply,
    "gradient whose square overflows": lambda x: x * 1.0 + (x - x.detach()) * 1e25,
}


def trainer_of(model: nn.Module, **options) -> StepTrainer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.125)
    clip_full_model(optimizer, max_norm=1.0)
    return StepTrainer(model, iter(lambda: BATCH, None), optimizer, accelerator=Accelerator("cpu"), **options)


def run(trainer: StepTrainer, iterations: range) -> EventStorage:
    with EventStorage(iterations.start) as storage:
        for trainer.iter in iterations:
            storage.iter = trainer.iter
            trainer.run_step()
    return storage


def state_of(trainer: StepTrainer) -> dict:
    return copy.deepcopy({"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()["state"]})


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_bad_step_changes_nothing_and_good_ones_follow(spoiler: str):
    trainer = trainer_of(Small(SPOILERS[spoiler], {1}))
    run(trainer, range(1))
    before = state_of(trainer)
    storage = run(trainer, range(1, 2))
    torch.testing.assert_close(state_of(trainer), before, rtol=0, atol=0)
    assert storage.latest()["bad_steps"] == (1, 1)
    assert "total_loss" not in storage.latest()
    storage = run(trainer, range(2, 3))
    assert storage.latest()["bad_steps"] == (1, 2)
    assert "total_loss" in storage.latest()
    assert not torch.equal(trainer.model.line.weight, before["model"]["line.weight"])
    assert trainer.model.norm.num_batches_tracked == 2


def test_bad_step_is_logged_with_all_that_helps(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        run(trainer_of(Small(SPOILERS["NaN in the loss"], {1})), range(2))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "Iteration 1: numbers are not finite, the step is skipped (1 in a row, 1 so far). Learning rate 0.125; "
        "images a.jpg, b.jpg; not finite: loss, other; first bad result: module spoiler"
    )


def test_gradient_of_a_finite_loss_is_named(caplog: pytest.LogCaptureFixture):
    run(trainer_of(Small(SPOILERS["infinite gradient"], {0})), range(1))
    assert "the forward pass is finite, but 4 of 4 gradients are not: line.bias is the latest" in caplog.text


def test_weight_that_is_not_finite_is_named(caplog: pytest.LogCaptureFixture):
    model = Small(SPOILERS["NaN in the loss"], set())
    model.line.bias.data.fill_(torch.nan)
    run(trainer_of(model), range(1))
    assert "first bad result: module line, whose bias is not finite itself" in caplog.text


@pytest.mark.parametrize("parts", [1, 2])
def test_origin_is_searched_with_the_random_numbers_of_the_step_and_none_are_used_up(parts: int):
    bad = Small(SPOILERS["NaN in the loss"], set(range(parts)))
    run(trainer_of(bad, accumulation_steps=parts), range(1))
    after = torch.rand(1)
    good = Small(SPOILERS["NaN in the loss"], set())
    run(trainer_of(good, accumulation_steps=parts), range(1))
    assert torch.equal(torch.rand(1), after)
    assert len(bad.seen) == 2 * parts
    for first, second, expected in zip(bad.seen[:parts], bad.seen[parts:], good.seen, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, expected)


def test_statistics_that_overflow_make_a_step_bad():
    model = Small(SPOILERS["NaN in the loss"], set())
    trainer = trainer_of(model)
    model.norm.register_forward_hook(lambda *_: model.norm.running_var.fill_(torch.inf))
    run(trainer, range(1))
    assert trainer.bad_steps["total"] == 1
    assert torch.equal(model.norm.running_var, torch.ones(4))


def test_run_stops_after_so_many_in_a_row_and_not_before():
    model = Small(SPOILERS["NaN in the loss"], {0, 1, 3, 4, 5})
    trainer = trainer_of(model, most_bad_steps=3)
    run(trainer, range(5))
    with pytest.raises(RunError, match=r"stopped at iteration 5: 3 steps in a row \(SOLVER.MAX_BAD_STEPS\).*a\.jpg"):
        run(trainer, range(5, 6))
    assert trainer.bad_steps["total"] == 5


def test_counts_are_taken_up_again():
    trainer = trainer_of(Small(SPOILERS["NaN in the loss"], {0, 1}), most_bad_steps=3)
    run(trainer, range(2))
    resumed = trainer_of(Small(SPOILERS["NaN in the loss"], {0}), most_bad_steps=3)
    resumed.load_state_dict(trainer.state_dict())
    with pytest.raises(RunError, match="3 steps in a row"):
        run(resumed, range(2, 3))
    assert resumed.bad_steps["total"] == 3


def test_float16_loss_that_is_infinite_is_bad_and_not_an_overflow():
    trainer = trainer_of(Small(SPOILERS["infinity in the loss"], {0}), half_precision=torch.float16)
    run(trainer, range(1))
    assert (trainer.bad_steps["total"], trainer.skipped_steps, trainer.scaler.get_scale()) == (1, 0, 2.0**16)


def test_float16_overflow_is_skipped_and_not_bad_until_no_scale_helps():
    trainer = trainer_of(Small(SPOILERS["infinite gradient"], set(range(99))), half_precision=torch.float16)
    run(trainer, range(16))
    assert (trainer.bad_steps["total"], trainer.skipped_steps, trainer.scaler.get_scale()) == (0, 16, 1.0)
    with pytest.raises(RunError, match="gradients are not finite at any loss scale"):
        run(trainer, range(16, 17))


@pytest.mark.parametrize("place", ["weight", "statistic", "optimiser"])
def test_non_finite_state_is_never_saved(place: str):
    trainer = trainer_of(Small(SPOILERS["NaN in the loss"], set()))
    run(trainer, range(1))
    assert find_non_finite_state(trainer.model, trainer.optimizer) is None
    model, state = trainer.model, trainer.optimizer.state
    tensors = {"weight": model.line.weight, "statistic": model.norm.running_mean}
    names = {"weight": "line.weight", "statistic": "norm.running_mean", "optimiser": "exp_avg_sq of line.bias"}
    tensors["optimiser"] = state[model.line.bias]["exp_avg_sq"]
    tensors[place].data.view(-1)[0] = torch.inf
    with pytest.raises(RunError, match=f"Nothing is saved after iteration 0: {names[place]} is not finite"):
        trainer.state_dict()


def test_sums_norms_and_statistics_are_looked_at():
    one, huge = torch.ones(()), torch.tensor(3e38)
    integers = torch.ones(1, dtype=torch.int64)
    assert find_finite([one, one], [integers, torch.ones(2)], one).tolist() == [1, 1]
    assert find_finite([huge, huge], [], one).tolist() == [0, 1]
    assert find_finite([one], [], torch.full((3,), 1e30).norm()).tolist() == [1, 0]
    assert find_finite([one], [torch.tensor([1.0, torch.nan]), torch.ones(2).double()], one).tolist() == [0, 1]
