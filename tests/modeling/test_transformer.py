"""Position embedding, attention layers, encoder and decoder."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_cases import REFERENCE, REFERENCE2

from maskformer.modeling.transformer import TransformerDecoder, TransformerEncoder, sine_position_embedding
from maskformer.modeling.transformer.layers import attend, multi_head_attention

LAYER = {"dim": 8, "num_heads": 2, "dim_feedforward": 16, "dropout": 0.0}


def test_position_of_the_last_cell_is_a_whole_turn():
    # D 4: channels are (sin y, cos y, sin x, cos x) at wavelength 1; the last of 2 rows is 2 pi, the first pi.
    embedding = sine_position_embedding(2, 1, 4)
    expected = [math.sin(math.pi), math.cos(math.pi), math.sin(2 * math.pi), math.cos(2 * math.pi)]
    torch.testing.assert_close(embedding[:, 0, 0], torch.tensor(expected), rtol=0, atol=1e-5)


FIRST = [(REFERENCE, f"pos_{name}_norm") for name in ("16_3x4", "128_7x5", "128_1x1", "4_25x38")]
SECOND = [(REFERENCE2, f"pos_{name}_norm") for name in ("16_2x3", "16_8x12")]


@pytest.mark.parametrize(("folder", "name"), [*FIRST, *SECOND])
def test_position_embedding_is_the_reference(folder, name):
    right = np.load(folder / "units" / "units.npz")[name]
    embedding = sine_position_embedding(*right.shape[1:], right.shape[0])
    torch.testing.assert_close(embedding, torch.as_tensor(right), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_only_a_pre_norm_encoder_ends_in_a_norm(pre_norm):
    encoder = TransformerEncoder(num_layers=1, pre_norm=pre_norm, **LAYER)
    assert ("norm.weight" in encoder.state_dict()) == pre_norm


def test_an_encoder_of_no_layers_passes_features_on():
    features = torch.randn(1, 5, 8)
    assert torch.equal(
        TransformerEncoder(num_layers=0, pre_norm=False, **LAYER)(features, torch.randn(1, 5, 8)), features
    )


@pytest.mark.parametrize("pre_norm", [False, True])
def test_permuting_cells_with_their_positions_permutes_the_encoding(pre_norm):
    encoder = TransformerEncoder(num_layers=2, pre_norm=pre_norm, **LAYER)
    features, position, order = torch.randn(1, 5, 8), torch.randn(1, 5, 8), torch.tensor([4, 2, 0, 1, 3])
    permuted = encoder(features[:, order], position[:, order])
    torch.testing.assert_close(permuted, encoder(features, position)[:, order], rtol=1e-4, atol=1e-5)


def test_position_matters_to_the_encoder():
    encoder = TransformerEncoder(num_layers=1, pre_norm=False, **LAYER)
    features = torch.randn(1, 5, 8)
    assert not torch.allclose(encoder(features, torch.zeros(1, 5, 8)), encoder(features, torch.randn(1, 5, 8)))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_last_of_every_layer_is_the_answer(pre_norm):
    decoder = TransformerDecoder(num_layers=3, pre_norm=pre_norm, **LAYER)
    inputs = torch.randn(1, 4, 8), torch.randn(2, 6, 8), torch.randn(1, 6, 8)
    layers = decoder(*inputs, every_layer=True)
    assert layers.shape == (3, 2, 4, 8)
    assert torch.equal(decoder(*inputs, every_layer=False), layers[-1:])


def test_permuting_queries_permutes_the_decoding():
    decoder = TransformerDecoder(num_layers=2, pre_norm=False, **LAYER)
    queries, memory, position, order = torch.randn(1, 4, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 8), [2, 0, 3, 1]
    permuted = decoder(queries[:, order], memory, position, every_layer=False)
    torch.testing.assert_close(
        permuted, decoder(queries, memory, position, every_layer=False)[:, :, order], rtol=1e-4, atol=1e-5
    )


def test_self_attention_equals_the_formula():
    # One head, worked from the definition: softmax(q k / sqrt(D)) v, with the position in q and k only.
    encoder = TransformerEncoder(num_layers=1, pre_norm=False, **{**LAYER, "num_heads": 1})
    layer = encoder.layers[0]
    features, position = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    w, b = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
    x, y = features[0], (features + position)[0]
    q, k, v = y @ w[:8].T + b[:8], y @ w[8:16].T + b[8:16], x @ w[16:].T + b[16:]
    attended = layer.self_attn.out_proj((q @ k.T / math.sqrt(8)).softmax(-1) @ v)
    x = layer.norm1(x + attended)
    x = layer.norm2(x + layer.linear2(layer.linear1(x).relu()))
    torch.testing.assert_close(encoder(features, position)[0], x, rtol=1e-4, atol=1e-5)


def test_attention_is_that_of_pytorchs_module():
    attention = multi_head_attention(8, 2, dropout=0.0)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    expected, _ = attention(query, key, value)
    torch.testing.assert_close(attend(attention, query, key, value), expected)


def test_attention_drops_weights_only_while_training():
    attention = multi_head_attention(8, 2, dropout=0.5)
    tokens = torch.randn(1, 6, 8)
    assert not torch.equal(attend(attention, tokens, tokens, tokens), attend(attention, tokens, tokens, tokens))
    attention.eval()
    expected, _ = attention(tokens, tokens, tokens)
    torch.testing.assert_close(attend(attention, tokens, tokens, tokens), expected)
