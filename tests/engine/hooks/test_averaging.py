from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from maskformer.config import load_config
from maskformer.engine.hooks.averaging import WeightAverage
from maskformer.structures import Classes, InputError


class Scale(nn.Module):
    """One weight, one frozen parameter, one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.frozen = nn.Parameter(torch.tensor([7.0]), requires_grad=False)
        self.register_buffer("mean", torch.tensor([3.0]))
        self.classes: Classes | None = None


def averaged(folder: Path, decay: float = 0.9) -> tuple[Scale, torch.optim.Optimizer, WeightAverage]:
    model = Scale()
    optimizer = torch.optim.SGD([model.weight], lr=1.0)
    average = WeightAverage(model, optimizer, decay=decay, folder=str(folder))
    average.before_train()
    return model, optimizer, average


def step(model: Scale, optimizer: torch.optim.Optimizer, count: int = 1) -> None:
    for _ in range(count):
        model.weight.grad = torch.tensor([-1.0])  # the weight grows by 1
        optimizer.step()


def value(average: WeightAverage) -> float:
    return average.state_dict()["averages"]["weight"].item()


def test_average_follows_the_formula_with_its_warm_up(tmp_path: Path):
    model, optimizer, average = averaged(tmp_path, decay=0.2)
    expected = 1.0
    for update, decay in enumerate([1 / 10, 2 / 11, 0.2, 0.2]):
        step(model, optimizer)
        expected = decay * expected + (1 - decay) * (update + 2)
        assert value(average) == pytest.approx(expected)


def test_average_begins_with_the_weights_that_were_loaded(tmp_path: Path):
    model, _, average = averaged(tmp_path)
    model.weight.data.fill_(5.0)  # loaded after the hook was made
    average.before_train()
    assert value(average) == 5.0


def test_model_has_the_average_in_the_block_alone(tmp_path: Path):
    model, optimizer, average = averaged(tmp_path)
    step(model, optimizer)
    with pytest.raises(KeyError), average.in_place():
        assert model.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
        raise KeyError
    assert model.weight.item() == 2.0


def test_resumed_average_goes_on_bit_for_bit(tmp_path: Path):
    model, optimizer, average = averaged(tmp_path)
    step(model, optimizer, 3)
    state = {"averages": {"weight": average.state_dict()["averages"]["weight"].clone()}, "updates": 3}
    resumed_model, resumed_optimizer, resumed = averaged(tmp_path)
    resumed_model.weight.data.copy_(model.weight.data)
    resumed.load_state_dict(state)
    resumed.before_train()
    step(model, optimizer, 2)
    step(resumed_model, resumed_optimizer, 2)
    assert value(resumed) == value(average)


def test_file_holds_the_average_the_frozen_and_the_buffers(tmp_path: Path):
    model, optimizer, average = averaged(tmp_path)
    step(model, optimizer)
    model.mean.fill_(4.0)
    average.after_train()
    weights = torch.load(tmp_path / "model_ema.pth", weights_only=True)["model"]
    assert {name: tensor.item() for name, tensor in weights.items()} == {
        "weight": pytest.approx(1.9),
        "frozen": 7.0,
        "mean": 4.0,
    }


def test_file_says_the_classes_as_every_checkpoint_does(tmp_path: Path):
    model, optimizer, average = averaged(tmp_path)
    classes = Classes("dataset toy", ("water", "box"), things=frozenset({1}))
    model.classes = classes
    step(model, optimizer)
    average.after_train()
    content = torch.load(tmp_path / "model_ema.pth", weights_only=True)
    assert content["classes"] == classes.to_plain()


def test_decay_is_checked():
    with pytest.raises(InputError, match=r"SOLVER\.EMA\.DECAY is 1\.0, expected 0 or more and below 1"):
        load_config("", ["SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "1.0"])
