"""An independent implementation gives the same answer: Hugging Face's MaskFormer with the same random weights."""

from __future__ import annotations

import re

import pytest
import torch
from reference_cases import CONFIGS
from torch import Tensor

from maskformer.config import load_config

pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")

THIN = [
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.MASK_FORMER.HIDDEN_DIM", "32"),
    *("MODEL.MASK_FORMER.NHEADS", "4", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8", "MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.DEVICE", "cpu"),
]

# Ours by theirs; attention projections, which they keep apart, come after.
RENAMES = (
    (r"^model\.pixel_level_module\.encoder\.embedder\.embedder\.convolution", "backbone.stem.conv1"),
    (r"^model\.pixel_level_module\.encoder\.embedder\.embedder\.normalization", "backbone.stem.conv1.norm"),
    (
        r"^model\.pixel_level_module\.encoder\.encoder\.stages\.(\d+)\.layers\.",
        lambda m: f"backbone.res{int(m[1]) + 2}.",
    ),
    (r"\.layer\.(\d)\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.convolution\.", "."),
    (r"\.normalization\.", ".norm."),
    (r"^model\.pixel_level_module\.decoder\.mask_projection", "sem_seg_head.pixel_decoder.mask_features"),
    (r"^model\.pixel_level_module\.decoder\.fpn\.stem", "sem_seg_head.pixel_decoder.layer_4"),
    (
        r"^model\.pixel_level_module\.decoder\.fpn\.layers\.(\d)\.(proj|block)",
        lambda m: f"sem_seg_head.pixel_decoder.{'adapter' if m[2] == 'proj' else 'layer'}_{3 - int(m[1])}",
    ),
    (r"(pixel_decoder\.\w+_\d)\.0\.", r"\1."),
    (r"(pixel_decoder\.\w+_\d)\.1\.", r"\1.norm."),
    (r"^model\.transformer_module\.queries_embedder", "sem_seg_head.predictor.query_embed"),
    (r"^model\.transformer_module\.input_projection", "sem_seg_head.predictor.input_proj"),
    (r"^model\.transformer_module\.decoder\.layernorm", "sem_seg_head.predictor.transformer.decoder.norm"),
    (r"^model\.transformer_module\.decoder", "sem_seg_head.predictor.transformer.decoder"),
    (r"self_attn_layer_norm", "norm1"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"final_layer_norm", "norm3"),
    (r"encoder_attn", "multihead_attn"),
    (r"(\.\d+\.)(?:mlp\.)?fc(\d)", r"\1linear\2"),
    (r"\.(?:o_proj|out_proj)\.", ".out_proj."),
    (r"^class_predictor", "sem_seg_head.predictor.class_embed"),
    (r"^mask_embedder\.(\d)\.0", r"sem_seg_head.predictor.mask_embed.layers.\1"),
)


def rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def carry_over(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's state dict under our names."""
    renamed = {rename(name): value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for name in [name for name in renamed if ".q_proj." in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed


@pytest.fixture(scope="module")
def peer():
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig

    torch.manual_seed(7)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64, 128], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    decoder = DetrConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, num_queries=8,
        use_timm_backbone=False, backbone_config=backbone,
    )  # fmt: skip
    config = MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=32, backbone_config=backbone, decoder_config=decoder, num_labels=5
    )
    model = MaskFormerForInstanceSegmentation(config).eval()
    with torch.no_grad():
        for value in model.state_dict().values():  # biases, norms and statistics start at 0 and 1: make each matter
            if value.is_floating_point() and value.dim() == 1:
                value.add_(0.2 * torch.rand_like(value))
    return model


@pytest.fixture(scope="module")
def ours(peer):
    from detectron2.modeling import build_model

    import maskformer.meta_arch  # noqa: F401

    model = build_model(load_config(str(CONFIGS / "ade20k-150" / "maskformer_R50_bs16_160k.yaml"), THIN)).eval()
    model.load_state_dict(carry_over(peer.state_dict()))
    return model


@pytest.mark.parametrize("size", [(96, 128), (64, 64)])
@torch.no_grad()
def test_logits_and_masks_equal_hugging_faces(peer, ours, size):
    pixels = torch.randn(2, 3, *size)
    theirs = peer(pixel_values=pixels, pixel_mask=torch.ones(2, *size, dtype=torch.int64))
    class_logits, mask_logits = ours.sem_seg_head(ours.backbone(pixels)).final
    torch.testing.assert_close(class_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mask_logits, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    assert class_logits.std() > 0.05 and mask_logits.std() > 0.05  # the comparison is not of constants
