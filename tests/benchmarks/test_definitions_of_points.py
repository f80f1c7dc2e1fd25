"""Mask2Former's plain definitions: by hand on a few cells, the released model's numbers, and against the fast code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from reference_cases import CASES2, REFERENCE2, handed_out, read_arrays, read_case_json

from benchmarks import definitions_of_points as definitions
from benchmarks.definitions import assign
from maskformer.losses import HungarianMatcher, PointMasks, SetCriterion
from maskformer.structures import MaskPredictions, Targets

CORNERS = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])


def by_loop(rows: list[list[float]], x: float, y: float) -> float:
    """The bilinear value of a map at a point, from Python's numbers: each cell counts as near as its centre is."""
    column, row = x * len(rows[0]) - 0.5, y * len(rows) - 0.5
    return sum(
        value * max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(column - j))
        for i, cells in enumerate(rows)
        for j, value in enumerate(cells)
    )


def test_a_point_at_a_corner_has_a_quarter_of_the_pixel_and_one_outside_nothing():
    maps = torch.tensor([[[4.0, 8.0], [12.0, 16.0]]])
    assert definitions.sample_points(maps, CORNERS).tolist() == [[1.0, 2.0, 3.0, 4.0]]
    outside = torch.tensor([[[-0.25, 0.25], [1.25, 0.75], [0.5, 1.5]]])
    assert definitions.sample_points(maps, outside).tolist() == [[0.0, 0.0, 0.0]]


def test_samples_are_those_of_a_slow_loop():
    maps, points = torch.randn(3, 4, 5, dtype=torch.float64), 2 * torch.rand(3, 30, 2, dtype=torch.float64) - 0.5
    expected = [[by_loop(rows, *point) for point in of_map] for rows, of_map in zip(maps.tolist(), points.tolist())]
    torch.testing.assert_close(definitions.sample_points(maps, points), torch.tensor(expected, dtype=torch.float64))


def test_deformable_attention_on_two_by_two_cells_is_worked_by_hand():
    # One token, one head of width 1. Points: the middle (2.5), the centre of the last cell (4), a corner (1 / 4).
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    locations = torch.tensor([[0.5, 0.5], [0.75, 0.75], [0.0, 0.0]]).view(1, 1, 1, 1, 3, 2)
    weights = torch.tensor([0.5, 0.25, 0.25]).view(1, 1, 1, 1, 3)
    result = definitions.deformable_attention(value, [(2, 2)], locations, weights)
    assert result.tolist() == [[[0.5 * 2.5 + 0.25 * 4 + 0.25 * 0.25]]]


def test_a_mask_of_exactly_zero_forbids_nothing_and_one_that_forbids_all_is_opened():
    mask_logits = torch.tensor([[[[0.0, 0.0]], [[-1.0, -1.0]], [[1.0, -1.0]]]])
    forbidden = definitions.forbidden_cells(mask_logits, (1, 2))
    assert forbidden.tolist() == [[[False, False], [True, True], [False, True]]]
    assert definitions.open_forbidden_rows(forbidden).tolist() == [[[False, False], [False, False], [False, True]]]


def test_a_mask_is_resized_before_it_is_compared():
    # Halved, the two pixels of a cell become their mean.
    forbidden = definitions.forbidden_cells(torch.tensor([[[[3.0, -1.0, 1.0, -3.0]]]]), (1, 2))
    assert forbidden.tolist() == [[[False, True]]]


def test_cross_entropy_between_pixels_is_worked_by_hand():
    # p = 3/4 and a point half inside the mask: -(log(3/4) + log(1/4)) / 2.
    logits, masks = torch.full((1, 1), math.log(3.0)), torch.full((1, 1), 0.5)
    assert definitions.cross_entropy_loss(logits, masks).item() == pytest.approx(-math.log(3 / 16) / 2)


def test_uncertain_points_are_the_candidates_nearest_to_zero_in_their_order():
    mask_logits = torch.tensor([[[-5.0, 1.0, -2.0, 9.0]]])  # their centres at x = 1/8, 3/8, 5/8, 7/8
    candidates = torch.tensor([[[0.125, 0.5], [0.375, 0.5], [0.625, 0.5], [0.875, 0.5]]])
    uniform = torch.tensor([[[0.9, 0.1]]])
    points = definitions.choose_points(mask_logits, candidates, uniform, 3)
    assert points[0].tolist() == [[0.375, 0.5], [0.625, 0.5], uniform[0, 0].tolist()]


# --- the released model's numbers ---

UNITS = {name: torch.as_tensor(array) for name, array in np.load(REFERENCE2 / "units" / "units.npz").items()}


def test_deformable_attention_and_its_gradients_are_the_released_models():
    inputs = [UNITS[f"msda_{name}"].clone().requires_grad_() for name in ("value", "locations", "weights")]
    output = definitions.deformable_attention(inputs[0], UNITS["msda_shapes"].tolist(), *inputs[1:])
    torch.testing.assert_close(output, UNITS["msda_out"], rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad(output, inputs, UNITS["msda_out_grad"])
    for name, gradient in zip(("value", "locations", "weights"), gradients):
        torch.testing.assert_close(gradient, UNITS[f"msda_{name}_grad"], rtol=1e-9, atol=1e-9)


def stored(case: str) -> tuple[MaskPredictions, list[Targets], dict[str, np.ndarray], dict[str, Any]]:
    """What the released model predicted in a case, its targets, all arrays and its losses.json."""
    config = read_case_json(case, "config.json")
    arrays = read_arrays(case, config)
    prefixes = [*(f"aux{layer}_" for layer in range(3)), ""]
    class_logits, mask_logits = (
        torch.stack([torch.as_tensor(arrays[f"{prefix}pred_{kind}"]) for prefix in prefixes])
        for kind in ("logits", "masks")
    )
    targets = []
    for image in range(2):
        number, rows, columns = config[f"gt_masks{image}_shape"]
        masks = torch.zeros(number, 64, 96, dtype=torch.bool)
        unpacked = np.unpackbits(arrays[f"gt_masks{image}"], axis=-1)[..., :columns]
        masks[:, :rows, :columns] = torch.as_tensor(unpacked) > 0
        targets.append(Targets(torch.as_tensor(arrays[f"gt_classes{image}"]), masks))
    return MaskPredictions(class_logits, mask_logits), targets, arrays, read_case_json(case, "losses.json")


def draws_of(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [arrays[f"draw{index}"] for index in range(16)]


DRAWN = [case for case in CASES2 if not case.endswith("all_zero_logits")]  # there any candidate may be chosen


@pytest.mark.parametrize("case", DRAWN)
def test_losses_are_the_released_models(case):
    predictions, targets, arrays, right = stored(case)
    with handed_out(draws_of(arrays)):
        losses = definitions.set_losses_at_points(predictions, targets, num_points=112, draw=torch.rand)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(right["weighted"], rel=1e-9)


@pytest.mark.parametrize("case", CASES2)
def test_costs_and_matches_are_the_released_models(case):
    predictions, targets, arrays, right = stored(case)
    for call, name in enumerate(right["matching_order"]):
        layer = -1 if name == "final" else int(name.removeprefix("aux_"))
        for image, target in enumerate(targets):
            logits = predictions.class_logits[layer, image], predictions.mask_logits[layer, image]
            points = torch.as_tensor(arrays[f"draw{4 * call + image}"])[0]
            cost = definitions.matching_cost_at_points(*logits, target, points, definitions.RELEASED_WEIGHTS)
            torch.testing.assert_close(cost.numpy(), arrays[f"cost_{name}_img{image}"], rtol=1e-9, atol=1e-9)
            match = assign(cost)
            assert [match.query_indices.tolist(), match.target_indices.tolist()] == right["indices"][call][image]


@pytest.mark.parametrize("case", DRAWN)
def test_points_of_losses_are_the_released_models(case):
    predictions, _, arrays, right = stored(case)
    for call, name in enumerate(right["matching_order"]):
        layer = -1 if name == "final" else int(name.removeprefix("aux_"))
        of_layer = predictions.mask_logits[layer]
        logits = torch.cat([of_image[queries] for of_image, (queries, _) in zip(of_layer, right["indices"][call])])
        drawn = (torch.as_tensor(arrays[f"draw{4 * call + place}"]) for place in (2, 3))
        points = definitions.choose_points(logits, *drawn, 112)
        assert torch.equal(points, torch.as_tensor(arrays[f"points_{name}"]))


@pytest.mark.parametrize("case", CASES2)
def test_cells_that_masks_forbid_are_the_released_models(case):
    predictions, _, arrays, _ = stored(case)
    config = read_case_json(case, "config.json")
    empty = config["queries_whose_mask_forbids_everything_before_layer"]
    for layer, size in enumerate([(2, 3), (4, 6), (8, 12), (2, 3)]):
        forbidden = definitions.forbidden_cells(predictions.mask_logits[layer], size)
        shape = config[f"attn_forbidden_{layer}_shape"]
        right = np.unpackbits(arrays[f"attn_forbidden_{layer}"], axis=-1)[..., : shape[-1]].astype(bool)
        assert (forbidden.numpy() == right).all()
        opened = definitions.open_forbidden_rows(forbidden)
        rows = [(of_image.any(1) & ~after.any(1)).nonzero()[:, 0] for of_image, after in zip(forbidden, opened)]
        assert [queries.tolist() for queries in rows] == empty[layer]


# --- the fast code ---


def random_problem(dtype: torch.dtype, counts: tuple[int, int]) -> tuple[MaskPredictions, list[Targets]]:
    predictions = MaskPredictions(
        torch.randn(3, 2, 6, 5, dtype=dtype).requires_grad_(), torch.randn(3, 2, 6, 6, 7, dtype=dtype).requires_grad_()
    )
    return predictions, [Targets(torch.randint(4, (count,)), torch.rand(count, 24, 28) > 0.5) for count in counts]


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 0), (9, 1)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_losses_and_gradients_of_the_criterion_are_the_definition(counts, dtype, tolerance):
    predictions, targets = random_problem(dtype, counts)
    matcher = HungarianMatcher(class_weight=2, mask_weight=5, dice_weight=5)
    masks = PointMasks(num_points=40)
    criterion = SetCriterion(4, matcher=matcher, class_weight=2, mask_weight=5, dice_weight=5, masks=masks)
    results = []
    for losses_of in (criterion, lambda *inputs: definitions.set_losses_at_points(*inputs, num_points=40)):
        torch.manual_seed(1)
        losses = losses_of(predictions, targets)
        gradients = torch.autograd.grad(sum(losses.values()), [predictions.class_logits, predictions.mask_logits])
        results.append(({name: value.detach() for name, value in losses.items()}, gradients))
    assert results[0][0].keys() == results[1][0].keys()
    for name, value in results[1][0].items():
        torch.testing.assert_close(results[0][0][name], value, rtol=tolerance, atol=tolerance * 1e-2)
    for ours, plain in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance * plain.abs().max().item())
