"""Pixel decoders: shapes of the pyramid, a level by hand, names by configuration."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from interfaces import PixelDecoderTests
from torch.nn import functional as F

from maskformer.config import load_config
from maskformer.modeling import BasePixelDecoder, TransformerEncoderPixelDecoder
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
