"""Query decoders: what all promise, where queries may look, and the choice of one by its name."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import Conv2d
from interfaces import QueryDecoderTests

from benchmarks import definitions_of_points as definitions
from maskformer.config import load_config
from maskformer.modeling import MultiScaleMaskedTransformerDecoder, StandardTransformerDecoder
from maskformer.modeling.pixel_decoders import DecodedFeatures
from maskformer.modeling.query_decoders import build_query_decoder, masked
from maskformer.modeling.query_decoders.masked import may_attend
from maskformer.structures import InputError, multiply


class TestStandard(QueryDecoderTests):
    build = staticmethod(
        lambda: StandardTransformerDecoder(
            8, num_classes=4, num_queries=7, dim=16, mask_dim=5, num_encoder_layers=1, num_decoder_layers=2,
            num_heads=2, dim_feedforward=16, dropout=0.0, pre_norm=False, enforce_input_proj=False,
            deep_supervision=True,
        )
    )  # fmt: skip


def masked_decoder(num_decoder_layers: int = 5) -> MultiScaleMaskedTransformerDecoder:
    """One layer goes round the three levels and begins again, where nothing else is said."""
    return MultiScaleMaskedTransformerDecoder(
        8, num_classes=4, num_queries=7, dim=16, mask_dim=5, num_decoder_layers=num_decoder_layers,
        num_heads=2, dim_feedforward=16, dropout=0.0, pre_norm=False, enforce_input_proj=False, deep_supervision=True,
    )  # fmt: skip


class TestMasked(QueryDecoderTests):
    build = staticmethod(masked_decoder)


def test_a_query_looks_where_its_mask_is_not_negative_and_everywhere_if_it_is_all_over():
    mask_logits = torch.tensor([[[1.0, -1.0, 0.0], [-1.0, -2.0, -1e-9], [0.0, 0.0, 0.0], [-1.0, -1.0, 5.0]]])
    assert may_attend(mask_logits).int().tolist() == [[[1, 0, 1], [1, 1, 1], [1, 1, 1], [0, 0, 1]]]


@torch.no_grad()
@pytest.mark.parametrize(
    "kernel_size", [1, 3]
)  # of the projection to pixel embeddings: the resize goes before or after
def test_where_queries_look_is_the_definition_on_grids_that_do_not_divide_each_other(kernel_size, monkeypatch):
    decoder, (feature, decoded) = masked_decoder().double().train(), TestMasked().draw()
    projection = Conv2d(6, 5, kernel_size=kernel_size, padding=kernel_size // 2).double()
    levels = [torch.randn(2, 8, *size).double() for size in ((3, 2), (3, 5), (7, 9))]
    allowed: list[torch.Tensor] = []
    monkeypatch.setattr(masked, "may_attend", lambda logits: allowed.append(may_attend(logits)) or allowed[-1])
    decoded = DecodedFeatures(decoded.finest.double(), projection, levels)
    mask_logits = multiply(decoder(feature.double(), decoded)[1], decoded.mask_features)
    for layer, found in enumerate(allowed):
        size = levels[layer % 3].shape[2:]
        forbidden = definitions.open_forbidden_rows(definitions.forbidden_cells(mask_logits[layer], size))
        assert torch.equal(found, ~forbidden) and forbidden.any()
    assert len(allowed) == 4


SIZES = ((2, 4), (4, 8), (8, 16))


def with_masks(decoder: MultiScaleMaskedTransformerDecoder, left: float, right: float) -> DecodedFeatures:
    """Decoded features of which each mask of each layer has the same logits: ``left`` and ``right`` of the middle."""
    torch.nn.init.zeros_(decoder.mask_embed.layers[-1].weight)
    torch.nn.init.ones_(decoder.mask_embed.layers[-1].bias)
    projection = Conv2d(1, 5, kernel_size=1, bias=False)
    torch.nn.init.constant_(projection.weight, 0.2)
    finest = torch.cat([torch.full((1, 1, 8, 8), left), torch.full((1, 1, 8, 8), right)], dim=3)
    return DecodedFeatures(finest, projection, [torch.randn(1, 8, *size) for size in SIZES])


def classes_of(decoder: MultiScaleMaskedTransformerDecoder, decoded: DecodedFeatures) -> torch.Tensor:
    return decoder.eval()(decoded.levels[0], decoded)[0]


@torch.no_grad()
@pytest.mark.parametrize(("right", "matters"), [(-1e-3, False), (0.0, True), (2.0, True)])
def test_what_lies_outside_of_its_mask_does_not_change_a_query(right, matters):
    decoder = masked_decoder()
    decoded = with_masks(decoder, 3.0, right)
    before = classes_of(decoder, decoded)
    for level in decoded.levels:
        level[..., level.shape[3] // 2 :] += 1
    assert torch.equal(classes_of(decoder, decoded), before) != matters
    for level in decoded.levels:
        level[..., : level.shape[3] // 2] += 1
    assert not torch.allclose(classes_of(decoder, decoded), before)


@torch.no_grad()
def test_masks_that_forbid_everything_are_as_masks_that_forbid_nothing():
    decoder = masked_decoder()
    decoded = with_masks(decoder, 1.0, 1.0)
    expected = classes_of(decoder, decoded)
    empty = DecodedFeatures(-decoded.finest, decoded.projection, decoded.levels)
    assert torch.equal(classes_of(decoder, empty), expected) and expected.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("num_predictions", [1, 2, 3, 4])
def test_layers_look_at_the_levels_in_turn_the_coarsest_first(num_predictions):
    decoder = masked_decoder(num_predictions)
    decoded = with_masks(decoder, 1.0, 1.0)
    before = classes_of(decoder, decoded)
    for level in range(3):
        kept = decoded.levels[level].clone()
        decoded.levels[level] += torch.randn(kept.shape)
        assert torch.equal(classes_of(decoder, decoded), before) == (level >= num_predictions - 1)
        decoded.levels[level] = kept


@torch.no_grad()
def test_permuting_queries_permutes_the_predictions():
    decoder, inputs = masked_decoder().eval(), TestMasked().draw()
    before = decoder(*inputs)
    order = torch.randperm(7)
    for embedding in (decoder.query_feat, decoder.query_embed):
        embedding.weight.copy_(embedding.weight[order])
    for one, other in zip(decoder(*inputs), before, strict=True):
        torch.testing.assert_close(one, other[:, :, order], rtol=1e-4, atol=1e-5)


def test_a_decoder_is_chosen_by_its_name_and_an_unknown_name_is_refused_with_those_there_are():
    key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
    assert isinstance(build_query_decoder(load_config(""), 8), StandardTransformerDecoder)
    with pytest.raises(InputError, match=rf"{key}.*'Mine'.*StandardTransformerDecoder"):
        cfg = load_config("")
        cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "Mine"
        build_query_decoder(cfg, 8)
