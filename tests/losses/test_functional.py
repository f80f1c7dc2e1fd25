"""Focal and dice: by hand, against a slow loop, and against the reference arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE, read_json

from maskformer.losses import functional
from maskformer.losses.functional import dice_loss, pairwise_mask_costs, sigmoid_focal_loss

LOGIT_OF_THREE_QUARTERS = math.log(3.0)


@pytest.fixture(scope="module")
def units() -> dict[str, torch.Tensor]:
    arrays = np.load(REFERENCE / "units" / "units.npz")
    return {name: torch.as_tensor(arrays[name]) for name in arrays.files if not name.startswith("pos")}


def test_focal_loss_of_one_pixel_is_the_formula():
    # p = 3/4. Target 1: 0.25 * (1/4)^2 * -log(3/4). Target 0: 0.75 * (3/4)^2 * -log(1/4).
    logits = torch.tensor([[LOGIT_OF_THREE_QUARTERS]], dtype=torch.float64)
    hit = sigmoid_focal_loss(logits, torch.ones(1, 1, dtype=torch.float64), 1)
    miss = sigmoid_focal_loss(logits, torch.zeros(1, 1, dtype=torch.float64), 1)
    assert hit.item() == pytest.approx(0.25 / 16 * -math.log(0.75))
    assert miss.item() == pytest.approx(0.75 * 9 / 16 * math.log(4))


def test_dice_loss_of_a_two_by_two_mask_is_the_formula():
    # p = 1/2 everywhere, two pixels of four are set: 1 - (2 * 1 + 1) / (2 + 2 + 1).
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert dice_loss(torch.zeros(1, 4), targets, 1).item() == pytest.approx(1 - 3 / 5)


def test_perfect_prediction_has_zero_dice_and_zero_focal():
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    logits = (2 * targets - 1) * 100
    assert dice_loss(logits, targets, 1).item() == pytest.approx(0, abs=1e-6)
    assert sigmoid_focal_loss(logits, targets, 1).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num_masks", [1, 4, 2.5])
@pytest.mark.parametrize("loss", [dice_loss, sigmoid_focal_loss])
def test_losses_and_gradients_are_the_reference(units, loss, num_masks):
    logits = units["loss_in"].clone().double().requires_grad_()
    value = loss(logits, units["loss_tgt"].double(), num_masks)
    value.backward()
    name = f"{loss.__name__}_num{num_masks}"
    assert value.item() == pytest.approx(read_json("units", "losses.json")[name], rel=1e-12)
    torch.testing.assert_close(logits.grad, units[f"grad_{name}"].double(), rtol=1e-9, atol=1e-17)


def test_losses_of_extreme_logits_are_the_reference(units):
    logits, targets = units["extreme_in"].double(), units["extreme_tgt"].double()
    right = read_json("units", "losses.json")
    assert sigmoid_focal_loss(logits, targets, 1).item() == pytest.approx(right["focal_extreme_num1"], rel=1e-12)
    assert dice_loss(logits, targets, 1).item() == pytest.approx(right["dice_extreme_num1"], rel=1e-12)


@pytest.mark.parametrize("queries_at_once", [1, 2, 100])
def test_pairwise_cost_is_the_matched_loss_of_each_pair(queries_at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functional, "PIXELS_PER_THREAD", queries_at_once * 20 // torch.get_num_threads())
    logits = torch.randn(3, 20, dtype=torch.float64) * 4
    targets = (torch.rand(4, 20) > 0.5).double()
    for costs, matched in zip(pairwise_mask_costs(logits, targets), (sigmoid_focal_loss, dice_loss)):
        assert costs.shape == (3, 4)
        for query in range(3):
            for target in range(4):
                single = matched(logits[[query]], targets[[target]], 1)
                assert costs[query, target].item() == pytest.approx(single.item(), rel=1e-12)


def test_pairwise_costs_of_extreme_logits_are_the_matched_losses():
    logits, targets = torch.tensor([[300.0, -300.0], [1e4, 1e4]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    focal, dice = pairwise_mask_costs(logits, targets)
    expected = [[sigmoid_focal_loss(row[None], target[None], 1) for target in targets] for row in logits]
    torch.testing.assert_close(focal, torch.tensor(expected))
    assert dice[1, 1] == 0 and focal[1, 1] == 0


def test_pairwise_costs_of_no_target_have_no_column():
    focal, dice = pairwise_mask_costs(torch.randn(3, 20), torch.zeros(0, 20))
    assert focal.shape == dice.shape == (3, 0)
