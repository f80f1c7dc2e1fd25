"""Focal and dice: by hand, against a slow loop, and against the reference arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE, read_json

from maskformer.losses.functional import (
    MatchedMaskLosses,
    dice_loss,
    pairwise_dice_cost,
    pairwise_focal_cost,
    sigmoid_focal_loss,
)

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


@pytest.mark.parametrize(
    "pair", [(pairwise_focal_cost, sigmoid_focal_loss), (pairwise_dice_cost, dice_loss)], ids=["focal", "dice"]
)
def test_pairwise_cost_is_the_matched_loss_of_each_pair(pair):
    pairwise, matched = pair
    logits = torch.randn(3, 20, dtype=torch.float64)
    targets = (torch.rand(4, 20) > 0.5).double()
    costs = pairwise(logits, targets)
    for query in range(3):
        for target in range(4):
            single = matched(logits[[query]], targets[[target]], 1)
            assert costs[query, target].item() == pytest.approx(single.item(), rel=1e-12)


def test_pairwise_focal_cost_of_extreme_logits_is_finite():
    logits = torch.tensor([[300.0, -300.0]])
    assert pairwise_focal_cost(logits, torch.tensor([[0.0, 1.0]])).isfinite().all()


def matched_definition(mask_logits, masks, rows):
    """Slow: each mask alone, upsampled, through the definitions."""
    focal, dice = [], []
    for logits, row in zip(mask_logits, rows.tolist()):
        upsampled = torch.nn.functional.interpolate(
            logits[None, None], masks.shape[-2:], mode="bilinear", align_corners=False
        ).flatten(1)
        target = masks[row].flatten()[None].to(logits.dtype)
        focal.append(sigmoid_focal_loss(upsampled, target, 1))
        dice.append(dice_loss(upsampled, target, 1))
    return torch.stack(focal), torch.stack(dice)


@pytest.mark.parametrize("size", [(16, 24), (13, 22), (4, 6)], ids=["times 4", "odd", "same size"])
def test_matched_mask_losses_and_gradients_equal_the_definitions(size, monkeypatch):
    monkeypatch.setattr(MatchedMaskLosses, "_CHUNK_ELEMENTS", 2 * size[0] * size[1])  # several chunks
    masks = torch.rand(3, *size) > 0.5
    rows = torch.tensor([2, 0, 1, 1, 0])
    logits = torch.randn(5, 4, 6, dtype=torch.float64) * 5
    weights = torch.rand(2, 5, dtype=torch.float64)
    gradients, values = [], []
    for losses_of in (MatchedMaskLosses.apply, matched_definition):
        leaf = logits.clone().requires_grad_()
        focal, dice = losses_of(leaf, masks, rows)
        (weights[0] @ focal + weights[1] @ dice).backward()
        gradients.append(leaf.grad)
        values.append(torch.cat([focal, dice]).detach())
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-14)


def test_matched_mask_losses_of_extreme_logits_have_finite_gradients():
    logits = torch.tensor([[[1e4, -1e4], [60.0, -60.0]]], requires_grad=True)
    focal, dice = MatchedMaskLosses.apply(logits, torch.tensor([[[False, True], [True, False]]]), torch.tensor([0]))
    (focal + dice).sum().backward()
    assert focal.isfinite().all() and dice.isfinite().all() and logits.grad.isfinite().all()


def test_matched_mask_losses_of_no_pair_are_empty_and_differentiable():
    logits = torch.randn(0, 2, 2, requires_grad=True)
    focal, dice = MatchedMaskLosses.apply(
        logits, torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    )
    (focal.sum() + dice.sum()).backward()
    assert focal.shape == dice.shape == (0,) and logits.grad.shape == (0, 2, 2)
