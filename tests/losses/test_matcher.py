"""The matcher: by hand, invariances, and the reference problems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE, read_json

from maskformer.losses.matched_masks import resize_masks
from maskformer.losses.matcher import HungarianMatcher, solve_assignment
from maskformer.structures import MaskPredictions, Targets

PROBLEMS = read_json("matcher", "cases.json")


def one_image(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> MaskPredictions:
    return MaskPredictions(class_logits[None, None], mask_logits[None, None])


def separable_problem(num_classes: int = 4) -> tuple[MaskPredictions, list[Targets]]:
    """Query i predicts target i: its class and its quarter of an 8 x 8 image."""
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    for index in range(4):
        top, left = 4 * (index // 2), 4 * (index % 2)
        masks[index, top : top + 4, left : left + 4] = True
    class_logits = 5 * torch.eye(4, num_classes + 1)
    mask_logits = 10.0 * (2 * masks[:, ::4, ::4].float() - 1)
    return one_image(class_logits, mask_logits), [Targets(torch.arange(4), masks)]


def test_perfect_prediction_matches_by_identity():
    match = HungarianMatcher()(*separable_problem())[0][0]
    assert match.query_indices.tolist() == match.target_indices.tolist() == [0, 1, 2, 3]


def test_permuting_queries_permutes_the_match():
    predictions, targets = separable_problem()
    order = torch.tensor([2, 0, 3, 1])
    permuted = MaskPredictions(predictions.class_logits[:, :, order], predictions.mask_logits[:, :, order])
    match = HungarianMatcher()(permuted, targets)[0][0]
    assert match.target_indices.tolist() == order.tolist()


def test_cost_of_one_pair_is_worked_by_hand():
    # One pixel at p = 1/2 and target 1: class -1/3 (three equal logits), focal 0.25/4*log 2, dice 1 - (1+1)/(1.5+1).
    predictions = one_image(torch.zeros(1, 3), torch.zeros(1, 1, 1))
    targets = [Targets(torch.tensor([1]), torch.ones(1, 1, 1, dtype=torch.bool))]
    cost = HungarianMatcher(class_weight=2, mask_weight=20, dice_weight=3).costs(predictions, targets)
    assert cost.item() == pytest.approx(-2 / 3 + 20 * 0.25 / 4 * np.log(2) + 3 * (1 - 2 / 2.5), rel=1e-6)


def test_images_with_fewer_targets_are_not_matched_with_padding():
    predictions, targets = separable_problem()
    two = MaskPredictions(predictions.class_logits.repeat(1, 2, 1, 1), predictions.mask_logits.repeat(1, 2, 1, 1, 1))
    fewer = Targets(targets[0].labels[2:3], targets[0].masks[2:3])
    matches = HungarianMatcher()(two, [targets[0], fewer])[0]
    assert matches[1].query_indices.tolist() == [2] and matches[1].target_indices.tolist() == [0]


def test_image_without_targets_has_an_empty_match():
    predictions, _ = separable_problem()
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool))
    match = HungarianMatcher()(predictions, [empty])[0][0]
    assert len(match.query_indices) == len(match.target_indices) == 0


def test_target_masks_are_resized_by_nearest_neighbour():
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 2] = masks[0, 3, 3] = True  # nearest to a 2 x 2 grid reads rows and columns 0 and 2
    assert resize_masks(masks, (2, 2)).tolist() == [[[False, True], [False, False]]]


def test_half_precision_costs_are_computed_in_float32():
    predictions, targets = separable_problem()
    half = MaskPredictions(predictions.class_logits.half(), predictions.mask_logits.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        costs = HungarianMatcher().costs(half, targets)
    assert costs.dtype == torch.float32
    torch.testing.assert_close(costs, HungarianMatcher().costs(predictions, targets))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"case {problem['case']}")
def test_costs_and_assignments_are_the_reference(problem):
    arrays = np.load(REFERENCE / "matcher" / "cases.npz")
    number = f"c{problem['case']:02d}_"
    part = {key.removeprefix(number): torch.as_tensor(arrays[key]) for key in arrays.files if key.startswith(number)}
    matcher = HungarianMatcher(
        class_weight=problem["cost_class"], mask_weight=problem["cost_mask"], dice_weight=problem["cost_dice"]
    )
    masks = part["gt_ids"][None] == torch.arange(problem["targets"])[:, None, None]
    predictions = one_image(part["pred_logits"], part["pred_masks"])
    cost = matcher.costs(predictions, [Targets(part["labels"].long(), masks)])[0, 0]
    tolerance = 1e-9 if problem["dtype"] == "float64" else 1e-4
    torch.testing.assert_close(cost.double(), part["cost"].double(), rtol=tolerance, atol=tolerance)
    match = solve_assignment(cost)
    assert match.query_indices.tolist() == part["row"].tolist()
    assert match.target_indices.tolist() == part["col"].tolist()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", [(3, 2), (2, 3)])
def test_costs_that_are_not_finite_are_matched_in_order_and_say_so(bad: float, size: tuple[int, int]):
    cost = torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 0.0], [0.0, 2.0, 2.0]])[: size[0], : size[1]]
    assert solve_assignment(cost).has_finite_costs
    cost[1, 0] = bad
    match = solve_assignment(cost)
    assert match.query_indices.tolist() == match.target_indices.tolist() == [0, 1]
    assert not match.has_finite_costs
