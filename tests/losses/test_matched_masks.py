"""Matched masks: values and gradients against the definitions, whatever is looked at together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskformer.losses import chunks
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
    monkeypatch.setattr(chunks, "PER_CPU_THREAD", elements)
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


def test_float32_is_within_a_ten_thousandth():
    logits, masks = torch.randn(2, 3, 32, 32) * 8, torch.rand(2, 128, 128) > 0.8
    for fast, slow in zip(MatchedMaskLosses.apply(logits, masks), definition(logits.double(), masks)):
        torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=0)


def test_extreme_logits_have_finite_gradients():
    logits = torch.tensor([[[[1e4, -1e4], [60.0, -60.0]]]], requires_grad=True)
    focal, dice = MatchedMaskLosses.apply(logits, torch.tensor([[[False, True], [True, False]]]))
    (focal + dice).sum().backward()
    assert focal.isfinite().all() and dice.isfinite().all() and logits.grad.isfinite().all()


def test_no_pair_is_empty_and_differentiable():
    logits = torch.randn(0, 6, 2, 2, requires_grad=True)
    focal, dice = MatchedMaskLosses.apply(logits, torch.zeros(0, 8, 8, dtype=torch.bool))
    (focal.sum() + dice.sum()).backward()
    assert focal.shape == dice.shape == (0, 6) and logits.grad.shape == (0, 6, 2, 2)
