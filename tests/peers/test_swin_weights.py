"""Swin backbones: Hugging Face's MaskFormer and timm's Swin give the same answers as ours with their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peer_models import R50, shake
from torch import nn
from torch.nn import functional as F

from maskformer.checkpoint import Checkpointer
from maskformer.config import load_config
from maskformer.tools.convert import main as convert

SIZES = {"depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 6], "window_size": 4}
SWIN = [
    *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "12", "MODEL.SWIN.DEPTHS", "[2, 2, 2, 2]"),
    *("MODEL.SWIN.NUM_HEADS", "[1, 2, 3, 6]", "MODEL.SWIN.WINDOW_SIZE", "4", "MODEL.SWIN.PRETRAIN_IMG_SIZE", "64"),
]
THIN_HEAD = [
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32"),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.NHEADS", "4", "MODEL.MASK_FORMER.DEC_LAYERS", "2"),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8", "MODEL.DEVICE", "cpu"),
]


@pytest.fixture(scope="module")
def hugging_face() -> nn.Module:
    pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig, SwinConfig

    decoder = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    config = MaskFormerConfig(
        backbone_config=SwinConfig(
            embed_dim=12, image_size=64, **SIZES, out_features=["stage1", "stage2", "stage3", "stage4"]
        ),
        decoder_config=DetrConfig(
            **decoder,
            num_queries=8,
            use_timm_backbone=False,
            backbone_config=ResNetConfig(out_features=["stage4"]),
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=5,
    )
    return shake(MaskFormerForInstanceSegmentation(config)).eval()


@torch.no_grad()
def assert_same_answers(peer: nn.Module, ours: nn.Module, pixels: torch.Tensor) -> None:
    theirs = peer(pixel_values=pixels)
    class_logits, mask_logits = ours.sem_seg_head(ours.backbone(pixels)).final
    torch.testing.assert_close(class_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mask_logits, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    assert class_logits.std() > 0.05 and mask_logits.std() > 0.05


def test_logits_and_masks_equal_hugging_faces_there_and_back(hugging_face: nn.Module, tmp_path: Path):
    from detectron2.modeling import build_model
    from transformers import MaskFormerForInstanceSegmentation

    import maskformer.meta_arch  # noqa: F401

    hugging_face.save_pretrained(tmp_path / "theirs")
    ours = build_model(load_config(R50, [*SWIN, *THIN_HEAD])).eval()
    Checkpointer(ours).load(str(tmp_path / "theirs"))
    pixels = torch.randn(2, 3, 96, 128)
    assert_same_answers(hugging_face, ours, pixels)
    torch.save({"model": ours.state_dict()}, tmp_path / "ours.pth")
    words = [str(tmp_path / "ours.pth"), str(tmp_path / "back"), "--to", "hugging-face", "--config-file", R50]
    assert convert([*words, *SWIN, *THIN_HEAD]) == 0
    back, loading = MaskFormerForInstanceSegmentation.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_same_answers(back.eval(), ours, pixels)


@torch.no_grad()
def test_timm_features(build_backbone: Callable[..., nn.Module], tmp_path: Path):
    timm_swin = pytest.importorskip("timm.models.swin_transformer", reason="a test-only dependency")
    sizes = {"depths": SIZES["depths"], "num_heads": SIZES["num_heads"], "window_size": 4, "embed_dim": 12}
    # Large enough for two windows a side at stride 32: a single one timm does not shift.
    peer = shake(timm_swin.SwinTransformer(img_size=256, **sizes)).eval()
    torch.save({"model": peer.state_dict()}, tmp_path / "swin.pth")
    ours = build_backbone(*SWIN).eval()
    Checkpointer(ours).load(str(tmp_path / "swin.pth"))
    pixels = torch.randn(1, 3, 256, 256)
    features = ours.backbone(pixels)
    x = peer.patch_embed(pixels)
    for layer, level in zip(peer.layers, ("res2", "res3", "res4", "res5"), strict=True):
        x = layer(x)
        expected = F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)  # our norms of the outputs are new
        torch.testing.assert_close(features[level], expected, rtol=1e-4, atol=1e-4)
