"""Sampled points: values by hand, a loop over pairs, and the seeded losses of Hugging Face's Mask2Former."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskformer.losses import DenseMasks, HungarianMatcher, PointMasks, SetCriterion
from maskformer.losses.points import sample
from maskformer.structures import MaskPredictions, Targets

POINTS = PointMasks(num_points=20, oversample_ratio=3.0, importance_ratio=0.75)


def draw_predictions(layers: int = 3, queries: int = 6, dtype: torch.dtype = torch.float64) -> MaskPredictions:
    masks = torch.randn(layers, 2, queries, 8, 12, dtype=dtype) * 3
    return MaskPredictions(torch.randn(layers, 2, queries, 5, dtype=dtype), masks)


def draw_targets(*numbers: int) -> list[Targets]:
    return [Targets(torch.randint(0, 4, (n,)), torch.rand(n, 32, 48) > 0.6) for n in numbers]


def test_a_point_between_four_pixels_is_their_mean_and_beyond_the_edge_there_is_zero():
    maps = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    points = torch.tensor([[[0.5, 0.5], [0.25, 0.25], [0.75, 0.25], [0.0, 0.25]]])  # (x,y)
    assert sample(maps, points).tolist() == [[[4.0, 1.0, 3.0, 0.5]]]


def test_costs_are_those_of_each_pair_at_the_points_of_the_image():
    predictions, targets = draw_predictions(), draw_targets(3, 2)
    step = POINTS.prepare(predictions, targets)
    for image, target in enumerate(targets):
        ce, dice = step.costs(image, predictions.mask_logits[:, image], target.masks)
        for layer in range(3):
            points = step.of_costs[layer, image][None]
            logits = sample(predictions.mask_logits[layer, image][None], points)[0]
            masks = sample(target.masks[None].double(), points)[0]
            for q in range(6):
                for g in range(len(masks)):
                    expected = F.binary_cross_entropy_with_logits(logits[q], masks[g])
                    torch.testing.assert_close(ce[layer, q, g], expected)
                    p = logits[q].sigmoid()
                    expected = 1 - (2 * (p * masks[g]).sum() + 1) / (p.sum() + masks[g].sum() + 1)
                    torch.testing.assert_close(dice[layer, q, g], expected)


def test_costs_and_losses_can_be_taken_without_any_target():
    predictions, targets = draw_predictions(), draw_targets(0, 0)
    predictions.mask_logits.requires_grad_()
    predictions.class_logits.requires_grad_()
    losses = SetCriterion(4, matcher=HungarianMatcher(), masks=POINTS)(predictions, targets)
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0
    sum(losses.values()).backward()
    assert not predictions.mask_logits.grad.any()  # there, as processes that exchange gradients need it


def test_points_are_the_least_certain_candidates_and_uniform_ones():
    """All pixels of one mask are certain but for one column: the chosen points lie there."""
    logits = torch.full((1, 1, 1, 8, 8), 20.0)
    logits[..., 3] = 0.0
    predictions = MaskPredictions(torch.zeros(1, 1, 1, 5), logits)
    target = Targets(torch.tensor([0]), torch.zeros(1, 8, 8, dtype=torch.bool))
    masks = PointMasks(num_points=40, oversample_ratio=20.0, importance_ratio=1.0)
    step = masks.prepare(predictions, [target])
    pairs = torch.zeros(4, 1, 1, dtype=torch.int64)
    cross_entropy, _ = step.losses(logits[0].movedim(1, 0), target.masks, pairs)
    everywhere = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    assert cross_entropy.item() < 0.6 * everywhere  # softplus(0..20) near the column, 20 elsewhere


@pytest.mark.parametrize("numbers", [(3, 4), (0, 2), (9, 1)])  # the last: more targets than queries
def test_seeded_losses_are_hugging_faces(numbers):
    mask2former = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    from transformers import Mask2FormerConfig

    predictions, targets = draw_predictions(dtype=torch.float32), draw_targets(*numbers)
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    config = Mask2FormerConfig(num_labels=4, train_num_points=20, oversample_ratio=3.0, importance_sample_ratio=0.75)
    theirs = mask2former.Mask2FormerLoss(config, weights)
    auxiliary = [
        {"masks_queries_logits": masks, "class_queries_logits": classes}
        for classes, masks in zip(predictions.class_logits[:-1], predictions.mask_logits[:-1])
    ]
    torch.manual_seed(3)
    expected = theirs(
        predictions.mask_logits[-1],
        predictions.class_logits[-1],
        [target.masks.float() for target in targets],
        [target.labels for target in targets],
        auxiliary,
    )
    matcher = HungarianMatcher(class_weight=2, mask_weight=5, dice_weight=5)
    criterion = SetCriterion(4, matcher=matcher, class_weight=2, mask_weight=5, dice_weight=5, masks=POINTS)
    torch.manual_seed(3)
    actual = criterion(predictions, targets)
    for name, value in actual.items():
        kind, _, layer = name.removeprefix("loss_").partition("_")
        key = "loss_" + kind.replace("ce", "cross_entropy" if kind == "ce" else "ce") + (f"_{layer}" if layer else "")
        torch.testing.assert_close(value, weights[key.rstrip("_0123456789")] * expected[key], rtol=1e-4, atol=1e-5)


def test_many_points_approach_whole_masks():
    predictions, targets = draw_predictions(layers=1, dtype=torch.float32), draw_targets(2, 3)
    many = PointMasks(num_points=200_000, importance_ratio=0.0).prepare(predictions, targets)
    (_, of_points), (_, of_pixels) = (
        masks.costs(0, predictions.mask_logits[:, 0], targets[0].masks) for masks in (many, DenseMasks())
    )
    assert (of_points - of_pixels).abs().max() < 0.1  # targets are resized by another rule
