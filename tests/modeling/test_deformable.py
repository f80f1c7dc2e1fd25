"""Deformable attention: by hand, against a slow loop and the definition, and the reference arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE2

from benchmarks import definitions_of_points as definitions
from maskformer.modeling.transformer.deformable import MultiScaleDeformableAttention, reference_points, sample_values

UNITS = {name: torch.as_tensor(array) for name, array in np.load(REFERENCE2 / "units" / "units.npz").items()}
# On a CPU compiled loops do float32, PyTorch's operators everything else.
PRECISIONS = {torch.float32: 1e-4, torch.float64: 1e-9}
both_ways = pytest.mark.parametrize("dtype", PRECISIONS, ids=str)


def at_points(rows: list[list[float]], points: list[list[float]], dtype: torch.dtype) -> list[float]:
    """The values of one map of one channel at (x,y) points."""
    values = torch.tensor(rows, dtype=dtype).view(1, -1, 1, 1)
    locations = torch.tensor(points, dtype=dtype).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(1, len(points), 1, 1, 1, dtype=dtype)
    return sample_values(values, [(len(rows), len(rows[0]))], locations, weights).flatten().tolist()


@both_ways
def test_values_of_two_by_two_cells_are_worked_by_hand(dtype):
    middle, centre_of_last, above_it = [0.5, 0.5], [0.75, 0.75], [0.75, 0.5]
    assert at_points([[1, 2], [3, 4]], [middle, centre_of_last, above_it], dtype) == [2.5, 4.0, 3.0]


@both_ways
def test_half_of_a_value_is_left_on_the_border_a_quarter_at_a_corner_and_nothing_outside(dtype):
    corners, borders = [[0, 0], [1, 0], [0, 1], [1, 1]], [[0, 0.25], [0.25, 0], [1, 0.75], [0.75, 1]]
    outside = [[-0.25, 0.5], [1.25, 0.5], [0.5, -3], [0.5, 1e9], [-1e9, -1e9]]
    values = at_points([[4, 8], [12, 16]], [*corners, *borders, *outside], dtype)
    assert values == [1, 2, 3, 4, 2, 2, 8, 8, 0, 0, 0, 0, 0]


@both_ways
def test_a_map_of_one_cell_fades_towards_its_edge(dtype):
    assert at_points([[8]], [[0.5, 0.5], [0, 0.5], [0.75, 0.25], [-0.5, 0.5]], dtype) == [8, 4, 4.5, 0]


SIZES = [(1, 2), (2, 2), (3, 4)]


def draw_inputs(dtype: torch.dtype, tokens: int = 5, points: int = 2) -> list[torch.Tensor]:
    """Values, locations (some outside) and weights of 2 images, 3 heads of 2 channels and the maps of SIZES."""
    cells = sum(rows * columns for rows, columns in SIZES)
    locations = 2 * torch.rand(2, tokens, 3, len(SIZES), points, 2, dtype=torch.float64) - 0.5
    weights = torch.rand(2, tokens, 3, len(SIZES), points, dtype=torch.float64)
    values = torch.randn(2, cells, 3, 2, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (values, locations, weights)]


def slow_loop(values, locations, weights, image: int, token: int, head: int, channel: int) -> float:
    """One number of the answer, from Python's numbers: a cell counts as near as its middle is to the place."""
    total, first = 0.0, 0
    for level, (rows, columns) in enumerate(SIZES):
        for point in range(weights.shape[-1]):
            x, y = locations[image, token, head, level, point].tolist()
            for cell in range(rows * columns):
                row, column = divmod(cell, columns)
                near = max(0.0, 1 - abs(y * rows - 0.5 - row)) * max(0.0, 1 - abs(x * columns - 0.5 - column))
                value = values[image, first + cell, head, channel].item()
                total += weights[image, token, head, level, point].item() * near * value
        first += rows * columns
    return total


@both_ways
def test_three_maps_are_summed_as_a_slow_loop_does(dtype):
    values, locations, weights = draw_inputs(dtype)
    sampled = sample_values(values, SIZES, locations, weights).unflatten(-1, (3, 2))
    for place in np.ndindex(sampled.shape):
        assert sampled[place].item() == pytest.approx(slow_loop(values, locations, weights, *place), rel=1e-4, abs=1e-5)


@both_ways
def test_values_and_gradients_are_the_definition(dtype):
    inputs = draw_inputs(dtype, tokens=40, points=3)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    ours = sample_values(inputs[0], SIZES, *inputs[1:])
    plain = definitions.deformable_attention(doubles[0], SIZES, *doubles[1:])
    direction = torch.randn(plain.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(ours, inputs, direction.to(dtype))
    expected = torch.autograd.grad(plain, doubles, direction)
    for actual, right in zip([ours, *gradients], [plain, *expected]):
        assert actual.dtype == dtype and actual.shape == right.shape
        assert (actual.double() - right).abs().max() < PRECISIONS[dtype] * right.abs().max()


@both_ways
def test_values_and_gradients_are_the_reference(dtype):
    inputs = [UNITS[f"msda_{name}"].to(dtype).requires_grad_() for name in ("value", "locations", "weights")]
    output = sample_values(inputs[0], UNITS["msda_shapes"].tolist(), *inputs[1:])
    gradients = torch.autograd.grad(output, inputs, UNITS["msda_out_grad"].to(dtype))
    names = ("out", "value_grad", "locations_grad", "weights_grad")
    for actual, name in zip([output, *gradients], names):
        right = UNITS[f"msda_{name}"]
        assert (actual.double() - right).abs().max() < PRECISIONS[dtype] * right.abs().max(), name


def test_gradients_of_compiled_loops_do_not_need_contiguous_tensors():
    inputs = draw_inputs(torch.float32)
    strided = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in inputs]
    results = []
    for values, locations, weights in (inputs, strided):
        sampled = sample_values(values, SIZES, locations, weights)
        results.append([sampled, *torch.autograd.grad(sampled.mT.square().sum(), [values, locations, weights])])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("dim", "num_heads"), [(256, 8), (32, 4)])
def test_heads_begin_in_the_directions_of_the_reference(dim, num_heads):
    attention = MultiScaleDeformableAttention(dim, num_heads=num_heads, num_levels=3, num_points=4)
    right = UNITS[f"init_sampling_offsets_bias_{dim}_3_{num_heads}_4"]
    torch.testing.assert_close(attention.sampling_offsets.bias.detach(), right, rtol=0, atol=1e-6)
    first_two = attention.sampling_offsets.bias.detach().view(num_heads, 3, 4, 2)[:2, 0, 1]
    diagonal = [2.0, 2.0] if num_heads == 8 else [0.0, 2.0]
    torch.testing.assert_close(first_two, torch.tensor([[2.0, 0.0], diagonal]), rtol=0, atol=1e-6)
    zeros = (attention.sampling_offsets.weight, *attention.attention_weights.parameters())
    assert not any(parameter.any() for parameter in (*zeros, attention.value_proj.bias, attention.output_proj.bias))
    limit = math.sqrt(6 / (2 * dim))  # Xavier
    for linear in (attention.value_proj, attention.output_proj):
        assert 0.95 * limit < linear.weight.abs().max() <= limit


def test_reference_points_are_the_reference():
    right = UNITS["reference_points_3x4_6x8_12x16"]
    points = reference_points([(3, 4), (6, 8), (12, 16)], torch.zeros(()))
    for level in range(3):
        torch.testing.assert_close(points, right[0, :, level], rtol=0, atol=1e-6)


@torch.no_grad()
def test_attention_is_its_formula():
    attention = MultiScaleDeformableAttention(6, num_heads=3, num_levels=3, num_points=2).double()
    for parameter in attention.parameters():
        parameter.normal_()
    cells = torch.randn(2, sum(rows * columns for rows, columns in SIZES), 6, dtype=torch.float64)
    queries, references = torch.randn(2, 4, 6, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    values = attention.value_proj(cells).view(2, -1, 3, 2)
    offsets = attention.sampling_offsets(queries).view(2, 4, 3, 3, 2, 2)
    weights = attention.attention_weights(queries).view(2, 4, 3, 6).softmax(-1).view(2, 4, 3, 3, 2)
    locations = torch.empty_like(offsets)
    for level, (rows, columns) in enumerate(SIZES):  # offsets are cells of the map
        locations[..., level, :, 0] = references[:, None, None, 0] + offsets[..., level, :, 0] / columns
        locations[..., level, :, 1] = references[:, None, None, 1] + offsets[..., level, :, 1] / rows
    expected = attention.output_proj(definitions.deformable_attention(values, SIZES, locations, weights))
    torch.testing.assert_close(attention(queries, references, cells, SIZES), expected, rtol=1e-9, atol=1e-9)
