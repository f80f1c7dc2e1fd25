"""DINOv2 and DINOv3 of timm and of Hugging Face with the same random weights: tokens, also of resampled weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from peer_models import shake
from safetensors.torch import save_file
from torch import Tensor, nn

from maskformer.checkpoint import Checkpointer
from maskformer.config import load_config

THIN = {"EMBED_DIM": 48, "DEPTH": 2, "NUM_HEADS": 3, "NUM_BLOCKS": 1, "IMAGE_SIZE": 64}


def draw(peer: nn.Module) -> nn.Module:
    """Random weights, of which each matters: tokens and tables start small."""
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 if "token" in name or "pos" in name else 0.15)
    return shake(peer).eval()


def load(weights: str, **keys: Any) -> nn.Module:
    """An EoMT with the backbone of a file or folder."""
    options = [part for key, value in {**THIN, **keys}.items() for part in (f"MODEL.EOMT.{key}", value)]
    model = build_model(load_config("", ["MODEL.META_ARCHITECTURE", "EoMT", "MODEL.DEVICE", "cpu", *options])).eval()
    Checkpointer(model).load(weights)
    return model


@torch.no_grad()
def tokens_of(model: nn.Module, images: Tensor) -> Tensor:
    tokens, rotation = model.backbone.embed(images)
    for block in model.backbone.blocks:
        tokens = block(tokens, rotation)
    return model.backbone.norm(tokens)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("maskformer"), "propagate", True)
    caplog.set_level(logging.WARNING, "maskformer")
    return caplog


# timm


def build_timm(name: str, **sizes: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="a test-only dependency: pip install -e .[test]")
    thin = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0, "dynamic_img_size": True}
    return timm.create_model(name, **{**thin, **sizes}).eval()


@pytest.mark.parametrize(
    ("name", "sizes", "keys"),
    [
        ("vit_small_patch14_reg4_dinov2", {"img_size": 64, "patch_size": 16}, {}),
        ("vit_small_patch14_dinov2", {"img_size": 64, "patch_size": 16}, {"NUM_REGISTERS": 0}),
        ("vit_giant_patch14_reg4_dinov2", {"img_size": 64, "patch_size": 16, "mlp_ratio": 5.3334}, {"SWIGLU": True}),
        ("vit_small_patch16_dinov3", {"img_size": 64}, {"ROTARY": True}),
        ("vit_small_patch16_dinov3_qkvb", {"img_size": 64}, {"ROTARY": True}),
    ],
)
def test_timms_weights_give_its_tokens(
    name: str, sizes: dict[str, Any], keys: dict[str, Any], tmp_path: Path, warnings: pytest.LogCaptureFixture
):
    torch.manual_seed(0)
    peer = draw(build_timm(name, **sizes))
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    ours = load(str(tmp_path / "model.safetensors"), **keys)
    for size in ((64, 64), (64, 96)):
        images = torch.randn(2, 3, *size)
        if size == (64, 64) or name != "vit_small_patch14_dinov2":  # which would resample the class position too
            expected = peer.forward_features(images).detach()
            torch.testing.assert_close(tokens_of(ours, images), expected, rtol=1e-5, atol=1e-5)
            assert expected.std() > 0.1
    assert not warnings.records  # that there is no head is as it should be


def test_patch_14_and_another_grid_are_resampled_as_timm_does(tmp_path: Path):
    """As recipes start: from 37 x 37 patches of 14 pixels to the training grid of patches of 16."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    torch.manual_seed(1)
    released = draw(build_timm("vit_small_patch14_reg4_dinov2", img_size=518))
    save_file(released.state_dict(), tmp_path / "model.safetensors")
    peer = build_timm("vit_small_patch14_reg4_dinov2", img_size=96, patch_size=16)
    peer.load_state_dict(checkpoint_filter_fn(released.state_dict(), peer))
    ours = load(str(tmp_path / "model.safetensors"), IMAGE_SIZE=96)
    torch.testing.assert_close(ours.backbone.pos_embed, peer.pos_embed, rtol=0, atol=1e-6)
    theirs = peer.patch_embed.proj.weight
    torch.testing.assert_close(ours.backbone.patch_embed["proj"].weight, theirs, rtol=0, atol=1e-5)
    images = torch.randn(1, 3, 96, 96)
    expected = peer.forward_features(images).detach()
    torch.testing.assert_close(tokens_of(ours, images), expected, rtol=1e-4, atol=1e-4)


# Hugging Face


def build_hugging_face(kind: str, **sizes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")
    thin = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 64, "patch_size": 16}
    config = getattr(transformers, f"{kind}Config")(**{**thin, **sizes})
    return draw(getattr(transformers, f"{kind}Model")(config))


@pytest.mark.parametrize(
    ("kind", "sizes", "keys"),
    [
        ("Dinov2WithRegisters", {}, {}),
        ("Dinov2WithRegisters", {"use_swiglu_ffn": True}, {"SWIGLU": True}),
        ("Dinov2", {}, {"NUM_REGISTERS": 0}),
        ("DINOv3ViT", {"num_register_tokens": 4, "intermediate_size": 192}, {"ROTARY": True}),
    ],
)
def test_hugging_faces_weights_give_its_tokens(
    kind: str, sizes: dict[str, Any], keys: dict[str, Any], tmp_path: Path, warnings: pytest.LogCaptureFixture
):
    torch.manual_seed(2)
    peer = build_hugging_face(kind, **sizes)
    peer.save_pretrained(tmp_path / "folder")
    torch.save(peer.state_dict(), tmp_path / "memory.pth")  # by other names
    images = torch.randn(2, 3, 64, 64)
    expected = peer(images).last_hidden_state.detach()
    for weights in ("folder", "memory.pth"):
        tokens = tokens_of(load(str(tmp_path / weights), **keys), images)
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1 and not warnings.records


def test_hugging_faces_registers_and_patches_are_those_of_timm(tmp_path: Path):
    """One release in two layouts: the class position apart, and in the class token."""
    torch.manual_seed(3)
    peer = build_hugging_face("Dinov2WithRegisters", image_size=518, patch_size=14)
    peer.save_pretrained(tmp_path)
    ours = load(str(tmp_path))
    embeddings = peer.embeddings
    class_token = embeddings.cls_token + embeddings.position_embeddings[:, :1]
    torch.testing.assert_close(ours.backbone.cls_token, class_token, rtol=0, atol=1e-6)
    timm_peer = build_timm("vit_small_patch14_reg4_dinov2", img_size=518)
    state = {**timm_peer.state_dict(), "pos_embed": embeddings.position_embeddings[:, 1:].detach().clone()}
    save_file(state, tmp_path / "timm.safetensors")
    table = load(str(tmp_path / "timm.safetensors")).backbone.pos_embed
    torch.testing.assert_close(ours.backbone.pos_embed, table, rtol=0, atol=0)
