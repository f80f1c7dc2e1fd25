"""Pixel decoders: shapes of the pyramid, a level by hand, names by configuration."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from interfaces import SHAPES as COARSER
from interfaces import PixelDecoderTests, draw_features
from torch.nn import functional as F

from maskformer.config import load_config
from maskformer.modeling import BasePixelDecoder, MSDeformAttnPixelDecoder, TransformerEncoderPixelDecoder
from maskformer.modeling.pixel_decoders import build_pixel_decoder
from maskformer.structures import InputError

SHAPES = {"res3": ShapeSpec(channels=6, stride=8), "res2": ShapeSpec(channels=4, stride=4)}


def features() -> dict[str, torch.Tensor]:
    return {"res2": torch.randn(2, 4, 7, 9), "res3": torch.randn(2, 6, 4, 5)}


def test_two_levels_equal_the_definition():
    decoder = BasePixelDecoder(SHAPES, convs_dim=8, mask_dim=3, norm="")
    inputs = features()
    coarse = F.relu(F.conv2d(inputs["res3"], decoder.layer_2.weight, decoder.layer_2.bias, padding=1))
    lateral = F.conv2d(inputs["res2"], decoder.adapter_1.weight, decoder.adapter_1.bias)
    fine = lateral + F.interpolate(coarse, (7, 9), mode="nearest")
    fine = F.relu(F.conv2d(fine, decoder.layer_1.weight, decoder.layer_1.bias, padding=1))
    expected = F.conv2d(fine, decoder.mask_features.weight, decoder.mask_features.bias, padding=1)
    decoded = decoder(inputs)
    torch.testing.assert_close(decoded.mask_features, expected)
    assert decoded.encoded is None and decoded.mask_features.shape == (2, 3, 7, 9)


def test_convolutions_have_a_bias_only_without_a_norm():
    with_norm = BasePixelDecoder(SHAPES, convs_dim=8, mask_dim=3, norm="LN")
    assert with_norm.layer_1.bias is None and with_norm.mask_features.bias is not None
    assert BasePixelDecoder(SHAPES, convs_dim=8, mask_dim=3, norm="").layer_1.bias is not None


def test_encoder_output_feeds_the_pyramid_and_the_queries():
    decoder = TransformerEncoderPixelDecoder(
        SHAPES, convs_dim=8, mask_dim=3, norm="", num_encoder_layers=1,
        num_heads=2, dim_feedforward=16, dropout=0.0, pre_norm=False,
    )  # fmt: skip
    decoded = decoder(features())
    assert decoded.encoded.shape == (2, 8, 4, 5) and decoded.mask_features.shape == (2, 3, 7, 9)
    assert decoder.layer_2.weight.shape == (8, 8, 3, 3)
    decoded.mask_features.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_unknown_pixel_decoder_is_refused_with_the_valid_names():
    cfg = load_config("", ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN"])
    with pytest.raises(
        InputError,
        match=r"PIXEL_DECODER_NAME is 'FPN'.*BasePixelDecoder.*TransformerEncoderPixelDecoder",
    ):
        build_pixel_decoder(cfg, SHAPES)


class TestBase(PixelDecoderTests):
    build = staticmethod(lambda shapes, mask_dim: BasePixelDecoder(shapes, convs_dim=8, mask_dim=mask_dim, norm="LN"))


class TestTransformerEncoder(PixelDecoderTests):
    build = staticmethod(
        lambda shapes, mask_dim: TransformerEncoderPixelDecoder(
            shapes, convs_dim=8, mask_dim=mask_dim, norm="", num_encoder_layers=2,
            num_heads=2, dim_feedforward=16, dropout=0.0, pre_norm=False,
        )
    )  # fmt: skip


def multi_scale(shapes: dict[str, ShapeSpec], mask_dim: int = 3, **options) -> MSDeformAttnPixelDecoder:
    sizes = {"convs_dim": 64, "mask_dim": mask_dim, "norm": "GN", "num_encoder_layers": 2, "num_heads": 2}
    return MSDeformAttnPixelDecoder(
        shapes, **{**sizes, "encoded_features": ["res3", "res4"], "dropout": 0.0, **options}
    )


def trained_multi_scale(shapes: dict[str, ShapeSpec], mask_dim: int) -> MSDeformAttnPixelDecoder:
    """In the beginning where heads look does not depend on the token, and so not on the parameter ``level_embed``."""
    decoder = multi_scale(shapes, mask_dim)
    for name, parameter in decoder.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return decoder


class TestMultiScale(PixelDecoderTests):
    build = staticmethod(trained_multi_scale)


FOUR = {**COARSER, "res5": ShapeSpec(channels=10, stride=32)}


@torch.no_grad()
def test_two_levels_of_a_pyramid_follow_where_two_features_are_encoded():
    """Three levels are for queries, the finest is for masks."""
    decoder = multi_scale(FOUR, encoded_features=["res5", "res4"])
    features = {name: torch.randn(1, shape.channels, 128 // shape.stride, 64) for name, shape in FOUR.items()}
    decoded = decoder(features)
    assert [level.shape[2] for level in decoded.levels] == [4, 8, 16]
    assert decoded.encoded is decoded.levels[0] and decoded.mask_features.shape[2] == 32
    pyramid = [name for name in decoder.state_dict() if name.startswith(("adapter_", "layer_"))]
    assert {name.split(".")[0] for name in pyramid} == {"adapter_1", "adapter_2", "layer_1", "layer_2"}


@torch.no_grad()
def test_the_multi_scale_decoder_is_in_full_precision_under_autocast():
    decoder, inputs = multi_scale(COARSER), draw_features()
    expected = decoder(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = decoder(inputs)
    torch.testing.assert_close(decoded.mask_features, expected.mask_features, rtol=0, atol=0)
    torch.testing.assert_close(decoded.levels, expected.levels, rtol=0, atol=0)


@torch.no_grad()
def test_features_of_half_precision_are_decoded_in_full():
    decoder, inputs = multi_scale(COARSER), draw_features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = {name: feature.bfloat16() for name, feature in inputs.items()}
        decoded = decoder(halves)
    expected = decoder({name: feature.float() for name, feature in halves.items()})
    assert torch.equal(decoded.mask_features, expected.mask_features)


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"encoded_features": ["res2", "res3"]}, "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", "res2"),
        ({"encoded_features": []}, "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", r"\[\]"),
        ({"common_stride": 8}, "COMMON_STRIDE", "8"),
    ],
)
def test_features_that_make_no_pyramid_are_refused(options, key, value):
    with pytest.raises(InputError, match=rf"MODEL.SEM_SEG_HEAD.{key} is .*{value}.* expected"):
        multi_scale(COARSER, **options)


def test_fewer_features_than_queries_attend_to_are_refused():
    with pytest.raises(InputError, match=r"MODEL.SEM_SEG_HEAD.IN_FEATURES is .*res2.*res3.*expected 3"):
        multi_scale(SHAPES, encoded_features=["res3"])
