"""Matched masks: values and gradients against the definitions, whatever is looked at together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskformer.kernels import find_kernels
from maskformer.losses import functional, matched_masks
from maskformer.losses.functional import dice_loss, sigmoid_focal_loss
from maskformer.losses.matched_masks import MatchedMaskLosses


def definition(mask_logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Slow: each mask alone, upsampled, through the definitions."""
    losses = []
    for logits, mask in zip(mask_logits.flatten(0, 1), masks.repeat_interleave(mask_logits.shape[1], 0)):
        upsampled = torch.nn.functional.interpolate(logits[None, None], mask.shape, mode="bilinear").flatten(1)
        target = mask.flatten()[None].to(logits.dtype)
        losses.append(torch.stack([sigmoid_focal_loss(upsampled, target, 1), dice_loss(upsampled, target, 1)]))
    return tuple(torch.stack(losses).view(*mask_logits.shape[:2], 2).unbind(2))


SIZES = {"times 4": (16, 24), "odd": (13, 22), "same": (4, 6), "smaller": (3, 2), "one row": (1, 9)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("elements", [1, 50, 200, 1 << 20])  # from single rows to all targets together
def test_losses_and_gradients_equal_the_definitions(
    size: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(functional, "PIXELS_PER_THREAD", elements)
    masks = torch.rand(3, *size) > 0.5
    logits = torch.randn(3, 2, 4, 6, dtype=torch.float64) * 5
    weights = torch.rand(2, 3, 2, dtype=torch.float64)
    gradients, values = [], []
    for losses_of in (MatchedMaskLosses.apply, definition):
        leaf = logits.clone().requires_grad_()
        focal, dice = losses_of(leaf, masks)
        (weights[0] * focal + weights[1] * dice).sum().backward()
        gradients.append(leaf.grad)
        values.append(torch.cat([focal, dice]).detach())
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-14)


@pytest.fixture(params=["compiled", "operators"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Numba and without it."""
    if request.param == "compiled":
        assert find_kernels(torch.zeros(1)) is not None
    else:
        monkeypatch.setattr(matched_masks, "find_kernels", lambda *tensors: None)


@pytest.mark.parametrize("size", {**SIZES, "larger": (128, 128)}.values(), ids={**SIZES, "larger": ()})
def test_float32_is_within_a_hundred_thousandth(way: None, size: tuple[int, int]):
    logits, masks = torch.randn(2, 3, 16, 24) * 8, torch.rand(2, *size) > 0.8
    gradients = []
    for losses_of, leaf in ((MatchedMaskLosses.apply, logits.clone()), (definition, logits.double())):
        focal, dice = losses_of(leaf.requires_grad_(), masks)
        (focal.sum() + dice.sum()).backward()
        gradients.append((focal.detach().double(), dice.detach().double(), leaf.grad.double()))
    for fast, slow in zip(*gradients):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5 * slow.abs().max().item())


def test_logits_that_are_not_numbers_give_losses_and_gradients_that_are_not(way: None):
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 1, 2, 2] = torch.nan
    leaf = logits.requires_grad_()
    focal, dice = MatchedMaskLosses.apply(leaf, torch.rand(1, 16, 16) > 0.5)
    (focal + dice).sum().backward()
    assert focal.isnan().tolist() == dice.isnan().tolist() == [[False, True]]
    assert leaf.grad[0, 0].isfinite().all() and leaf.grad[0, 1].isnan().any()


def test_extreme_logits_have_finite_gradients(way: None):
    logits = torch.tensor([[[[1e4, -1e4], [60.0, -60.0]]]], requires_grad=True)
    focal, dice = MatchedMaskLosses.apply(logits, torch.tensor([[[False, True], [True, False]]]))
    (focal + dice).sum().backward()
    assert focal.isfinite().all() and dice.isfinite().all() and logits.grad.isfinite().all()


def test_no_pair_is_empty_and_differentiable(way: None):
    logits = torch.randn(0, 6, 2, 2, requires_grad=True)
    focal, dice = MatchedMaskLosses.apply(logits, torch.zeros(0, 8, 8, dtype=torch.bool))
    (focal.sum() + dice.sum()).backward()
    assert focal.shape == dice.shape == (0, 6) and logits.grad.shape == (0, 6, 2, 2)
