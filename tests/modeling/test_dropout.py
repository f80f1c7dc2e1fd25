"""Dropout: values, probabilities, random numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskformer.modeling.transformer.attention import attend, multi_head_attention
from maskformer.modeling.transformer.dropout import Dropout, drop

SIZE = 400_000


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_values_are_dropped_with_the_probability_and_keep_their_mean(probability: float):
    torch.manual_seed(1)
    dropped = drop(torch.ones(SIZE, dtype=torch.float64), probability)
    rate = (dropped == 0).double().mean().item()
    deviation = (probability * (1 - probability) / SIZE) ** 0.5
    assert abs(rate - probability) < 4 * deviation + 2**-17
    exact = round(probability * 2**16) / 2**16
    assert dropped.unique().tolist() == [0, pytest.approx(1 / (1 - exact), rel=1e-15)]


def test_neighbours_are_dropped_independently():
    torch.manual_seed(1)
    dropped = drop(torch.ones(SIZE), 0.1) == 0
    for distance in range(1, 9):  # four come from one random number
        both = (dropped[distance:] & dropped[:-distance]).double().mean().item()
        assert abs(both - 0.01) < 4 * (0.01 * 0.99 / SIZE) ** 0.5
    for place in range(4):
        assert abs(dropped[place::4].double().mean().item() - 0.1) < 4 * (0.09 / SIZE * 4) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (0, 5)])
def test_gradient_is_what_each_value_was_multiplied_with(shape: tuple[int, ...], dtype: torch.dtype):
    x = torch.randn(shape, dtype=dtype).requires_grad_()
    dropped = drop(x, 0.5)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert dropped.dtype == dtype and set(gradient.flatten().tolist()) <= {0.0, 2.0}
    assert torch.equal(dropped, x * gradient)


def test_random_numbers_follow_the_seed_and_the_generators_state():
    x = torch.ones(1001)
    torch.manual_seed(3)
    first = drop(x, 0.5)
    state = torch.get_rng_state()
    second = drop(x, 0.5)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(drop(x, 0.5), second)
    torch.manual_seed(3)
    assert torch.equal(drop(x, 0.5), first)


@pytest.mark.parametrize(
    ("x", "probability"),
    [(torch.ones(99, dtype=torch.bfloat16), 0.5), (torch.ones(99), 1e-9), (torch.ones(99), 1.0), (torch.ones(99), 0.0)],
)
def test_other_types_and_ends_of_the_range_are_pytorchs(x: torch.Tensor, probability: float):
    torch.manual_seed(3)
    expected = F.dropout(x, probability)
    torch.manual_seed(3)
    assert torch.equal(drop(x, probability), expected)


def test_autocast_is_pytorchs():
    torch.manual_seed(3)
    expected = F.dropout(torch.ones(99), 0.5)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drop(torch.ones(99), 0.5), expected)


def test_nothing_is_dropped_or_drawn_in_evaluation():
    x, state = torch.ones(99), torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_drops_weights_as_the_formula_says():
    attention = multi_head_attention(8, 2, 0.5).double().train()
    query, memory = torch.randn(2, 3, 8).double().requires_grad_(), torch.randn(2, 5, 8).double().requires_grad_()
    torch.manual_seed(5)
    attended = attend(attention, query, memory, memory)
    torch.manual_seed(5)
    multipliers = drop(torch.ones(2, 2, 3, 5).double(), 0.5)
    assert set(multipliers.unique().tolist()) == {0, 2}
    expected = plain_attention(attention, query, memory, multipliers)
    torch.testing.assert_close(attended, expected, rtol=1e-12, atol=1e-12)
    weights, inputs = torch.randn_like(attended), (query, memory, *attention.parameters())
    gradients, plain = (torch.autograd.grad((result * weights).sum(), inputs) for result in (attended, expected))
    torch.testing.assert_close(gradients, plain, rtol=1e-9, atol=1e-12)


def plain_attention(attention: torch.nn.MultiheadAttention, query, memory, multipliers) -> torch.Tensor:
    """Head by head; the weights of (B, heads, targets, sources) times their multipliers."""
    projections = zip((query, memory, memory), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3))
    q, k, v = (tokens @ weight.T + bias for tokens, weight, bias in projections)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(q[..., part] @ k[..., part].mT / 2, -1) * multipliers[:, head]
        heads.append(weights @ v[..., part])
    return attention.out_proj(torch.cat(heads, -1))
