"""An independent implementation gives the same features: Hugging Face's Swin backbone with the same random weights."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from maskformer.modeling import D2SwinTransformer

pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")

# Ours by theirs, in transformers 5 and 4; queries, keys and values, which they keep apart, come after.
RENAMES = (
    (r"^(swin\.)?embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^(swin\.)?embeddings\.norm", "patch_embed.norm"),
    (r"^(swin\.)?encoder\.", ""),
    (r"attention\.(relative_position_bias|self)\.", "attn."),
    (r"attention\.(o_proj|output\.dense)", "attn.proj"),
    (r"attention\.(\w)_proj", r"attn.\1"),
    (r"attn\.(q)uery|attn\.(k)ey|attn\.(v)alue", lambda m: f"attn.{m[0][5]}"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^hidden_states_norms\.stage(\d)", lambda m: f"norm{int(m[1]) - 1}"),
)


def carry_over(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's state dict under our names."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    for name in [name for name in renamed if ".attn.q." in name]:
        renamed[name.replace(".q.", ".qkv.")] = torch.cat([renamed.pop(name.replace(".q.", f".{p}.")) for p in "qkv"])
    return renamed


def models(depths: list[int], num_heads: list[int], window_size: int) -> tuple[torch.nn.Module, D2SwinTransformer]:
    from transformers import SwinBackbone, SwinConfig

    stages = [f"stage{stage}" for stage in range(1, len(depths) + 1)]
    config = SwinConfig(
        embed_dim=12, depths=depths, num_heads=num_heads, window_size=window_size, out_features=stages,
        drop_path_rate=0.0, layer_norm_eps=1e-5,
    )  # fmt: skip
    theirs = SwinBackbone(config).double().eval()
    with torch.no_grad():
        for value in theirs.parameters():  # biases and norms start at 0 and 1: make each matter
            value.add_(0.1 * torch.randn_like(value))
    ours = D2SwinTransformer(
        embed_dim=12, depths=depths, num_heads=num_heads, window_size=window_size,
        out_features=["res2", "res3", "res4", "res5"][: len(depths)],
    ).double().eval()  # fmt: skip
    missing, unexpected = ours.load_state_dict(carry_over(theirs.state_dict()), strict=False)
    assert all(name.endswith("relative_position_index") for name in missing)
    assert all(re.match(r"(swin\.)?layernorm", name) or name.endswith("relative_position_index") for name in unexpected)
    return theirs, ours


@pytest.mark.parametrize(
    ("depths", "num_heads", "window_size"), [([2, 2, 2, 2], [1, 2, 3, 6], 7), ([2, 3], [3, 4], 4), ([1, 4], [2, 2], 3)]
)
@torch.no_grad()
def test_features_equal_hugging_faces_at_any_size(depths, num_heads, window_size):
    theirs, ours = models(depths, num_heads, window_size)
    for size in ((64, 96), (61, 83), (33, 130), (5, 9)):
        pixels = torch.randn(2, 3, *size, dtype=torch.float64)
        expected = theirs(pixels).feature_maps
        features = ours(pixels)
        assert len(features) == len(expected)
        for actual, right in zip(features.values(), expected):
            torch.testing.assert_close(actual, right, rtol=1e-9, atol=1e-9)
