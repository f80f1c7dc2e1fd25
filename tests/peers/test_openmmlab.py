"""mmdet's MaskFormer and Mask2Former give the same logits and masks as ours with their weights.

mmdet asks for compiled operators that MaskFormer does not use, and Mask2Former not on a CPU; where they are absent,
empty ones stand in for them.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_models import R50, shake
from reference_cases import CONFIGS
from torch import nn

from maskformer.checkpoint import Checkpointer, convert_weights
from maskformer.checkpoint.layouts.hugging_face import to_hugging_face
from maskformer.config import load_config

pytestmark = pytest.mark.slow  # importing mmdet alone takes long

THIN = [
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "256", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.MASK_FORMER.HIDDEN_DIM", "32"),
    *("MODEL.MASK_FORMER.NHEADS", "4", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64"),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "8", "MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.DEVICE", "cpu"),
]
MASK2FORMER = str(CONFIGS / "mask2former/coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml")
THIN_SWIN = [
    *THIN[THIN.index("MODEL.SEM_SEG_HEAD.CONVS_DIM") :],
    *("MODEL.SWIN.EMBED_DIM", "12", "MODEL.SWIN.DEPTHS", "[2, 2, 2, 2]", "MODEL.SWIN.NUM_HEADS", "[1, 2, 3, 6]"),
    *("MODEL.SWIN.WINDOW_SIZE", "4", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "MODEL.WEIGHTS", ""),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "2", "MODEL.MASK_FORMER.DEC_LAYERS", "5"),
]
ENCODER = [
    *("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder"),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "2", "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE"),
    "transformer_encoder",
]


@pytest.fixture(scope="module")
def registry() -> Any:
    """mmdet's registry of models."""
    pytest.importorskip("mmcv", reason="optional: pip install mmdet mmengine mmcv-lite==2.1.0")
    if not hasattr(__import__("mmcv"), "_ext"):
        operators = types.ModuleType("mmcv._ext")
        operators.__getattr__ = lambda name: None  # type: ignore[method-assign]
        sys.modules.setdefault("mmcv._ext", operators)
    pytest.importorskip("mmdet", reason="optional: pip install mmdet mmengine mmcv-lite==2.1.0")
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    return MODELS


def build_head(registry: Any, channels: list[int], *, encoder: bool) -> nn.Module:
    from mmengine.config import ConfigDict

    attention = {"embed_dims": 32, "num_heads": 4, "batch_first": True}
    feed_forward = {"embed_dims": 32, "feedforward_channels": 64}
    position = {"num_feats": 16, "normalize": True}
    decoder = {"type": "TransformerEncoderPixelDecoder" if encoder else "PixelDecoder"}
    if encoder:
        layer = {"self_attn_cfg": attention, "ffn_cfg": feed_forward}
        decoder |= {"encoder": {"num_layers": 2, "layer_cfg": layer}, "positional_encoding": position}
    layer = {"self_attn_cfg": attention, "cross_attn_cfg": attention, "ffn_cfg": feed_forward}
    head = {
        "type": "MaskFormerHead",
        "in_channels": channels,
        "feat_channels": 32,
        "out_channels": 32,
        "num_things_classes": 3,
        "num_stuff_classes": 2,
        "num_queries": 8,
        "pixel_decoder": decoder,
        "transformer_decoder": {"num_layers": 2, "layer_cfg": layer, "return_intermediate": True},
        "positional_encoding": position,
        "loss_cls": {"type": "CrossEntropyLoss", "class_weight": [1.0] * 5 + [0.1]},
    }
    return registry.build(ConfigDict(head))


def build_mask2former_head(registry: Any, channels: list[int]) -> nn.Module:
    from mmengine.config import ConfigDict

    attention = {"embed_dims": 32, "num_heads": 4, "batch_first": True, "dropout": 0.0}
    position = {"num_feats": 16, "normalize": True}
    ffn = {"embed_dims": 32, "num_fcs": 2, "ffn_drop": 0.0, "act_cfg": {"type": "ReLU", "inplace": True}}
    deformable = {**attention, "num_levels": 3, "num_points": 4}
    encoder = {"self_attn_cfg": deformable, "ffn_cfg": {**ffn, "feedforward_channels": 1024}}
    decoder = {"self_attn_cfg": attention, "cross_attn_cfg": attention, "ffn_cfg": {**ffn, "feedforward_channels": 64}}
    head = {
        "type": "Mask2FormerHead",
        "in_channels": channels,
        "strides": [4, 8, 16, 32],
        "feat_channels": 32,
        "out_channels": 32,
        "num_things_classes": 3,
        "num_stuff_classes": 2,
        "num_queries": 8,
        "num_transformer_feat_level": 3,
        "pixel_decoder": {
            "type": "MSDeformAttnPixelDecoder",
            "num_outs": 3,
            "norm_cfg": {"type": "GN", "num_groups": 32},
            "act_cfg": {"type": "ReLU"},
            "encoder": {"num_layers": 2, "layer_cfg": encoder},
            "positional_encoding": position,
        },
        "positional_encoding": position,
        "transformer_decoder": {"num_layers": 4, "layer_cfg": decoder, "return_intermediate": True},
        "loss_cls": {"type": "CrossEntropyLoss", "class_weight": [1.0] * 5 + [0.1]},
    }
    return registry.build(ConfigDict(head))


class Peer(nn.Module):
    """mmdet's parts under the names that its detector gives them."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.panoptic_head = head

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from mmdet.structures import DetDataSample

        size = tuple(pixels.shape[-2:])
        samples = [DetDataSample(metainfo={"batch_input_shape": size, "img_shape": size}) for _ in pixels]
        class_logits, mask_logits = self.panoptic_head(self.backbone(pixels), samples)
        return class_logits[-1], mask_logits[-1]


@pytest.mark.parametrize("layout", ["mmdet", "mmsegmentation"])
@pytest.mark.parametrize("encoder", [False, True])
def test_logits_and_masks_equal_mmdets(registry: Any, tmp_path: Path, encoder: bool, layout: str):
    from detectron2.modeling import build_model

    backbone = {"type": "ResNet", "depth": 50, "norm_eval": True, "base_channels": 64, "style": "pytorch"}
    head = build_head(registry, [256, 512, 1024, 2048], encoder=encoder)
    peer = shake(Peer(registry.build(backbone), head)).eval()
    state = peer.state_dict()
    if layout == "mmsegmentation":
        state = {name.replace("panoptic_head.", "decode_head."): tensor for name, tensor in state.items()}
    torch.save({"meta": {"epoch": 75}, "state_dict": state}, tmp_path / "peer.pth")
    ours = build_model(load_config(R50, [*THIN, *(ENCODER if encoder else [])])).eval()
    Checkpointer(ours).load(str(tmp_path / "peer.pth"))
    assert_same_answers(peer, ours)


@torch.no_grad()
def assert_same_answers(peer: nn.Module, ours: nn.Module) -> None:
    pixels = torch.randn(2, 3, 64, 96)
    for got, expected in zip(ours.sem_seg_head(ours.backbone(pixels)).final, peer(pixels), strict=True):
        assert expected.std() > 0.05
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


SWIN = {"depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 6], "window_size": 4}


def test_mask2formers_logits_and_masks_equal_mmdets(registry: Any, tmp_path: Path):
    from detectron2.modeling import build_model

    backbone = registry.build({"type": "SwinTransformer", "embed_dims": 12, **SWIN})
    peer = shake(Peer(backbone, build_mask2former_head(registry, [12, 24, 48, 96]))).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():  # which start at 0
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.2)
    torch.save({"meta": {"epoch": 50}, "state_dict": peer.state_dict()}, tmp_path / "peer.pth")
    ours = build_model(load_config(MASK2FORMER, THIN_SWIN)).eval()
    Checkpointer(ours).load(str(tmp_path / "peer.pth"))
    assert_same_answers(peer, ours)


def test_swin_logits_equal_mmdets_by_way_of_hugging_face(registry: Any):
    """Both are independent of ours: mmdet's weights by our names, then by Hugging Face's, in its model."""
    pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig, SwinConfig

    backbone = registry.build({"type": "SwinTransformer", "embed_dims": 12, **SWIN})
    peer = shake(Peer(backbone, build_head(registry, [12, 24, 48, 96], encoder=False))).eval()
    other = MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=SwinConfig(embed_dim=12, **SWIN, out_features=["stage1", "stage2", "stage3", "stage4"]),
            decoder_config=DetrConfig(
                d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, num_queries=8,
                use_timm_backbone=False, backbone_config=ResNetConfig(out_features=["stage4"]),
            ),
            fpn_feature_size=32, mask_feature_size=32, num_labels=5,
        )
    ).eval()  # fmt: skip
    state, without_place = to_hugging_face(convert_weights(peer.state_dict(), "mmdet").state)
    assert not without_place
    renamed = {name.replace(".out_proj.", ".o_proj.").replace(".fc", ".mlp.fc"): value for name, value in state.items()}
    loading = other.load_state_dict(renamed, strict=False)
    left = [name for name in loading.missing_keys if not name.endswith(("relative_position_index", "empty_weight"))]
    assert not left and not loading.unexpected_keys
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        answers = other(pixel_values=pixels)
    for got, expected in zip((answers.class_queries_logits, answers.masks_queries_logits), peer(pixels), strict=True):
        assert expected.std() > 0.05
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
