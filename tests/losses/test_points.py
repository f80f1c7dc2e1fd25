"""Sampled points: by hand, a loop over pairs, the reference arrays, and the seeded losses of Hugging Face."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE2, handed_out
from torch.nn import functional as F

from maskformer.losses import DenseMasks, HungarianMatcher, PointMasks, SetCriterion, dice_loss, sigmoid_ce_loss
from maskformer.losses.points import SampledMasks, choose_points, sample, sample_masks
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


@pytest.mark.parametrize(
    ("x", "y", "share"), [(0, 0, 1 / 4), (1, 1, 1 / 4), (1, 0.5, 1 / 2), (-0.25, 0.5, 0), (2, 9, 0)]
)
def test_a_point_at_a_corner_the_border_and_outside_of_a_map_of_ones(x: float, y: float, share: float):
    assert sample(torch.ones(1, 1, 2, 2), torch.tensor([[[float(x), float(y)]]])).item() == pytest.approx(share)


def compare_at(points: list[list[float]], class_logits, mask_logits, targets) -> dict[str, torch.Tensor]:
    """Losses of one layer and image where all that is drawn are the same points."""
    masks = PointMasks(num_points=len(points), oversample_ratio=1.0, importance_ratio=1.0)
    criterion = SetCriterion(1, matcher=HungarianMatcher(mask_weight=1), mask_weight=1, masks=masks)
    drawn, num_pairs = np.array([points], dtype=np.float32), min(mask_logits.shape[0], len(targets[0].labels))
    with handed_out([drawn, drawn.repeat(num_pairs, 0), np.zeros((num_pairs, 0, 2), dtype=np.float32)]):
        return criterion(MaskPredictions(class_logits[None, None], mask_logits[None, None]), targets)


CENTRES = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]  # of two by two pixels


def test_a_mask_of_one_pixel_is_worked_by_hand():
    # p = 1/2 everywhere, one of four points is inside: log 2 and 1 - (2 * 1/2 + 1) / (2 + 1 + 1).
    target = Targets(torch.tensor([0]), torch.tensor([[[True, False], [False, False]]]))
    losses = compare_at(CENTRES, torch.zeros(1, 2), torch.zeros(1, 2, 2), [target])
    assert losses["loss_mask"].item() == pytest.approx(math.log(2))
    assert losses["loss_dice"].item() == pytest.approx(1 - 2 / 4)


def test_a_query_without_a_target_learns_that_there_is_no_object_and_nothing_of_its_mask():
    target = Targets(torch.tensor([0]), torch.tensor([[[True, True], [False, False]]]))
    fits = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]) * math.log(3)  # p = 3/4 of what is true
    mask_logits, class_logits = torch.stack([-fits, fits]).requires_grad_(), torch.zeros(2, 2, requires_grad=True)
    losses = compare_at(CENTRES, class_logits, mask_logits, [target])
    assert losses["loss_mask"].item() == pytest.approx(math.log(4 / 3))
    # Both classes are as probable: log 2 of each query, whatever it weighs.
    assert losses["loss_ce"].item() == pytest.approx(math.log(2))
    sum(losses.values()).backward()
    assert not mask_logits.grad[0].any() and mask_logits.grad[1].any()
    assert class_logits.grad[0, 1] < 0 < class_logits.grad[0, 0] and class_logits.grad[1, 0] < 0


def test_of_more_targets_than_queries_all_are_counted_and_the_best_is_learnt():
    masks = torch.tensor([[[False, False], [True, True]], [[True, True], [False, False]]])
    fits_second = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]]) * math.log(3)  # p = 3/4 of what is true
    losses = compare_at(CENTRES, torch.zeros(1, 2), fits_second, [Targets(torch.tensor([0, 0]), masks)])
    assert losses["loss_mask"].item() == pytest.approx(math.log(4 / 3) / 2)  # of two targets


UNITS = {name: torch.as_tensor(array) for name, array in np.load(REFERENCE2 / "units" / "units.npz").items()}


def test_samples_are_the_reference():
    samples = sample(UNITS["sample_map"], UNITS["sample_points"])[:, 0]
    torch.testing.assert_close(samples, UNITS["sample_out"], rtol=1e-9, atol=1e-9)


def test_uncertain_points_are_the_reference():
    chosen = choose_points(UNITS["sample_map"], UNITS["uncertain_draw0"], UNITS["uncertain_draw1"], 16)
    for actual, expected in zip(chosen, UNITS["uncertain_points"], strict=True):  # in any order
        assert sorted(actual.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("num_masks", ["1.0", "2.5", "6.0"])
def test_losses_are_the_reference(num_masks):
    right = json.loads((REFERENCE2 / "units" / "units.json").read_text())["losses"][num_masks]
    for loss, name in ((sigmoid_ce_loss, "bce"), (dice_loss, "dice")):
        value = loss(UNITS["loss_in"], UNITS["loss_tgt"], float(num_masks)).item()
        assert value == pytest.approx(right[name], rel=1e-9)


def test_pairwise_costs_are_the_reference():
    """Fifty values in a row are a map of which each centre is sampled."""
    points = torch.stack([(torch.arange(50, dtype=torch.float64) + 0.5) / 50, torch.full((50,), 0.5)], dim=1)
    step = SampledMasks(points[None, None], candidates=torch.empty(0), uniform=torch.empty(0))
    costs = step.costs(0, UNITS["loss_in"][None, :, None], UNITS["pair_tgt"][:, None])
    for cost, name in zip(costs, ("pair_bce", "pair_dice")):
        torch.testing.assert_close(cost[0], UNITS[name], rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float32 by compiled loops, where there are any
def test_maps_and_masks_are_sampled_as_pytorch_samples_them(dtype):
    masks, rows = torch.rand(3, 5, 7) > 0.5, torch.tensor([2, 0, 2, 1])
    points = torch.rand(4, 3000, 2, dtype=dtype) * 1.4 - 0.2  # beyond the edges too
    maps = torch.randn(4, 2, 5, 7, dtype=dtype)
    for actual, values in (
        (sample_masks(masks, rows, points)[:, None], masks[rows][:, None]),
        (sample(maps, points), maps),
    ):
        expected = F.grid_sample(values.double(), 2 * points.double()[:, None] - 1, align_corners=False)[:, :, 0]
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
