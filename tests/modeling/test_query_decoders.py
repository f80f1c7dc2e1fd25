"""Query decoders: what all promise, and the choice of one by its name."""

from __future__ import annotations

import pytest
from interfaces import QueryDecoderTests

from maskformer.config import load_config
from maskformer.modeling import StandardTransformerDecoder
from maskformer.modeling.query_decoders import build_query_decoder
from maskformer.structures import InputError


class TestStandard(QueryDecoderTests):
    build = staticmethod(
        lambda: StandardTransformerDecoder(
            8, num_classes=4, num_queries=7, dim=16, mask_dim=5, num_encoder_layers=1, num_decoder_layers=2,
            num_heads=2, dim_feedforward=16, dropout=0.0, pre_norm=False, enforce_input_proj=False,
            deep_supervision=True,
        )
    )  # fmt: skip


def test_a_decoder_is_chosen_by_its_name_and_an_unknown_name_is_refused_with_those_there_are():
    key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
    assert isinstance(build_query_decoder(load_config(""), 8), StandardTransformerDecoder)
    with pytest.raises(InputError, match=rf"{key}.*'Mine'.*StandardTransformerDecoder"):
        cfg = load_config("")
        cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = "Mine"
        build_query_decoder(cfg, 8)
