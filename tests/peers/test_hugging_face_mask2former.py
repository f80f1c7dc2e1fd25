"""Hugging Face's Mask2Former with the same random weights: logits, masks and seeded losses, and its folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from peer_models import shake
from reference_cases import read_lists
from safetensors import safe_open
from torch import nn

from maskformer.checkpoint import Checkpointer, convert_weights
from maskformer.checkpoint.layouts.hugging_face import to_hugging_face
from maskformer.exporting.folder import find_model, write_weights
from maskformer.inference import Geometry, semantic_inference
from maskformer.predictor import load
from maskformer.structures import InputError, Targets
from maskformer.tools.convert import main as convert

pytest.importorskip("transformers", reason="a test-only dependency: pip install -e .[test]")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
THIN: dict[str, Any] = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 4, "dim_feedforward": 64,
    "encoder_layers": 2, "decoder_layers": 5, "num_queries": 8, "num_labels": 5, "train_num_points": 100,
    "class_weight": 1.5, "mask_weight": 4.0, "dice_weight": 6.0, "no_object_weight": 0.2, "oversample_ratio": 2.0,
    "importance_sample_ratio": 0.5,
}  # fmt: skip


def swin(embed_dim: int = 24, **sizes: Any) -> Any:
    from transformers import SwinConfig

    sizes = {"depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 6], "window_size": 4, "drop_path_rate": 0.0, **sizes}
    return SwinConfig(embed_dim=embed_dim, out_features=STAGES, **sizes)


def resnet(**sizes: Any) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(out_features=STAGES, **sizes)


def build_peer(backbone: Any, **sizes: Any) -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, **sizes)).eval()


def draw(peer: nn.Module) -> nn.Module:
    """Random weights, of which each matters: offsets and weights of deformable attention start as constants."""
    shake(peer)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.2)
    return peer


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    torch.manual_seed(0)
    return draw(build_peer(swin(), **THIN))


@pytest.fixture(scope="module")
def folder(peer: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    peer.config.id2label = {index: f"class <{index}>" for index in range(5)}
    peer.save_pretrained(folder)
    return folder


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


# Names


@pytest.mark.parametrize("recipe", ["swin/maskformer2_swin_tiny_bs16_50ep.yaml", "maskformer2_R50_bs16_50ep.yaml"])
def test_names_and_shapes_at_full_size_are_the_released_ones_and_back(recipe: str):
    config = swin(96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7) if "swin" in recipe else resnet()
    with torch.device("meta"):
        theirs = build_peer(config, num_labels=133).state_dict()
    conversion = convert_weights(theirs, "theirs")
    assert conversion.layout.name == "Hugging Face Mask2Former"
    released = {
        name: shape
        for name, shape, *_ in read_lists("parameters")["coco/panoptic-segmentation/" + recipe]
        if not name.endswith("relative_position_index")
    }
    assert {name: list(tensor.shape) for name, tensor in conversion.state.items()} == released
    back, without_place = to_hugging_face(conversion.state)
    again = convert_weights(back, "back").state
    assert not without_place and again.keys() == conversion.state.keys()


def test_names_written_are_those_of_their_files(peer: nn.Module, folder: Path):
    theirs = names_in(folder)
    state = convert_weights(peer.state_dict(), "theirs").state
    back, without_place = to_hugging_face(state)
    assert back.keys() == theirs and not without_place
    index = "backbone.layers.0.blocks.0.attn.relative_position_index"  # which models of ours have, theirs make
    assert to_hugging_face({**state, index: torch.zeros(1)})[0].keys() == theirs
    left_out = "sem_seg_head.predictor.other.weight"
    assert to_hugging_face({**state, left_out: torch.zeros(1)})[1] == [left_out]


# The same answers


@torch.no_grad()
def assert_same_answers(peer: nn.Module, ours: nn.Module, size: tuple[int, int] = (96, 128)) -> None:
    pixels = torch.randn(2, 3, *size)
    theirs = peer(pixel_values=pixels)
    class_logits, mask_logits = ours.sem_seg_head(ours.backbone(pixels)).final
    torch.testing.assert_close(class_logits, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mask_logits, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
    assert class_logits.std() > 0.05 and mask_logits.std() > 0.05  # the comparison is not of constants


def test_their_folder_is_a_model_with_their_answers_and_classes(peer: nn.Module, folder: Path, tmp_path: Path):
    predictor = load(folder, device="cpu")
    assert predictor.classes.names == tuple(f"class <{index}>" for index in range(5))
    for size in ((96, 128), (64, 64)):
        assert_same_answers(peer, predictor.model, size)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert predictor(picture).task == "semantic"
    predictor.save_pretrained(tmp_path / "again", layout="hugging-face")
    assert names_in(tmp_path / "again") == names_in(folder)
    assert_same_answers(peer, load(tmp_path / "again", device="cpu").model)
    described = [json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "again")]
    for name in described[1].keys() - {"backbone_config", "label2id"}:
        assert described[1][name] == described[0][name], name


@pytest.mark.parametrize("source", ["folder", "weights in memory"])
def test_convert_brings_weights_there_and_back(
    peer: nn.Module, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, source: str
):
    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    cfg = find_model(folder)
    (tmp_path / "model.yaml").write_text(cfg.dump())
    if source != "folder":
        torch.save(peer.state_dict(), tmp_path / "theirs.pth")
    words = [str(folder if source == "folder" else tmp_path / "theirs.pth"), str(tmp_path / "ours.safetensors")]
    assert convert([*words, "--config-file", str(tmp_path / "model.yaml")]) == 0
    loaded, missing, unexpected, _ = capsys.readouterr().out.splitlines()
    assert ": Hugging Face Mask2Former," in loaded and unexpected.endswith("none")
    assert missing.split(": ")[1] == "backbone.layers (8)"  # indices of the relative positions, which the model has
    back = [str(tmp_path / "ours.safetensors"), str(tmp_path / "back"), "--to", "hugging-face"]
    assert convert([*back, "--config-file", str(tmp_path / "model.yaml")]) == 0
    said = capsys.readouterr().out
    assert "Mask2Former (this package or the original)" in said and "no place for: none" in said
    other, loading = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    state = peer.state_dict()
    different = [name for name, value in other.state_dict().items() if not torch.equal(value, state[name])]
    assert all(".swin.layernorm." in name for name in different)  # of an output that nothing reads
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "back")).__name__.startswith("Mask2FormerImageProcessor")
    card = (tmp_path / "back" / "README.md").read_text()
    assert "# Mask2Former" in card and "2112.01527" in card


@pytest.mark.parametrize(
    "sizes",
    [
        {"pre_norm": True, "enforce_input_projection": True},
        {"feature_size": 64, "mask_feature_size": 48, "num_labels": 2},
    ],
)
def test_variants_have_the_same_answers(sizes: dict[str, Any], tmp_path: Path):
    torch.manual_seed(1)
    peer = draw(build_peer(swin(12), **{**THIN, **sizes}))
    peer.save_pretrained(tmp_path)
    predictor = load(tmp_path, device="cpu")
    assert_same_answers(peer, predictor.model)
    assert len(predictor.classes.names) == sizes.get("num_labels", 5)


def timm_resnet() -> Any:
    pytest.importorskip("timm", reason="a test-only dependency: pip install -e .[test]")
    from transformers import TimmBackboneConfig

    return TimmBackboneConfig(
        backbone="resnet18", use_pretrained_backbone=False, out_indices=[1, 2, 3, 4], features_only=True
    )


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "timm"])
def test_resnets_have_the_same_answers_and_go_back(kind: str, tmp_path: Path):
    from transformers import Mask2FormerForUniversalSegmentation

    torch.manual_seed(2)
    blocks = [2, 2, 2, 2] if kind == "basic" else [3, 4, 6, 3]
    first = 64 if kind == "basic" else 16
    widths = {"embedding_size": 8, "hidden_sizes": [first * 2**stage for stage in range(4)], "depths": blocks}
    peer = draw(build_peer(timm_resnet() if kind == "timm" else resnet(layer_type=kind, **widths), **THIN))
    peer.save_pretrained(tmp_path / "theirs")
    predictor = load(tmp_path / "theirs", device="cpu")
    assert convert_weights(peer.state_dict(), "theirs").state.keys() == predictor.model.state_dict().keys()
    assert_same_answers(peer, predictor.model)
    predictor.save_pretrained(tmp_path / "back", layout="hugging-face")
    other, loading = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert_same_answers(other.eval(), predictor.model)


@pytest.mark.parametrize("numbers", [(3, 1), (0, 2), (9, 4)])  # the last: more targets than queries
def test_losses_and_gradients_of_a_seeded_step_are_theirs(peer: nn.Module, folder: Path, numbers: tuple[int, int]):
    ours = build_model(find_model(folder, ["MODEL.DEVICE", "cpu"])).train()
    Checkpointer(ours).load(str(folder))
    pixels = torch.randn(2, 3, 96, 128)
    targets = [Targets(torch.randint(0, 5, (n,)), torch.rand(n, 96, 128) > 0.6) for n in numbers]
    peer.zero_grad()
    torch.manual_seed(3)
    expected = peer.train()(
        pixel_values=pixels,
        mask_labels=[target.masks.float() for target in targets],
        class_labels=[target.labels for target in targets],
    ).loss
    peer.eval()
    torch.manual_seed(3)
    losses = ours.criterion(ours.sem_seg_head(ours.backbone(pixels)), targets)
    assert len(losses) == 15
    total = sum(losses.values())
    torch.testing.assert_close(total, expected.squeeze(), rtol=1e-5, atol=0)
    expected.backward()
    total.backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    ours_of = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, gradient in convert_weights(theirs, "gradients").state.items():
        scale = float(gradient.abs().max()) + 1e-2  # before a norm of its own channel, a bias has none in theory
        torch.testing.assert_close(ours_of[name] / scale, gradient / scale, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(("size", "are_equal"), [((384, 384), True), ((96, 160), False)])
def test_semantic_results_differ_where_theirs_go_through_384_pixels(size: tuple[int, int], are_equal: bool):
    """Their processor resizes every mask to 384 x 384 first: of a picture of this size results are equal."""
    from transformers import Mask2FormerImageProcessor
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

    class_logits, mask_logits = torch.randn(1, 8, 6), 3 * torch.randn(1, 8, size[0] // 4, size[1] // 4)
    outputs = Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=class_logits, masks_queries_logits=mask_logits
    )
    theirs = Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
    geometry = Geometry(padded_size=size, image_size=size, output_size=size)
    ours = semantic_inference(class_logits[0], mask_logits[0], geometry, restore_masks_first=False).argmax(0)
    different = float((ours != theirs).float().mean())
    assert len(theirs.unique()) > 1
    assert different < 1e-4 if are_equal else 1e-3 < different < 0.1


# What has no counterpart


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"encoder_feedforward_dim": 512}, "encoder_feedforward_dim 512; models here have only 1024"),
        ({"feature_strides": [4, 8, 16, 64]}, "feature_strides"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'"),
        ({"model_type": "oneformer"}, "'oneformer'; expected 'maskformer' or 'mask2former'"),
        ({"backbone_config": {"model_type": "convnext"}}, "'convnext'; expected resnet or swin"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50d"}}, "'resnet50d'"),
        ({"backbone_config": {"model_type": "swin", "use_absolute_embeddings": True}}, "use_absolute_embeddings True"),
        ({"backbone_config": None}, "missing or wrong"),
        ({"id2label": ["a", "b"]}, "missing or wrong"),
        ({"id2label": {"first": "a"}}, "missing or wrong"),
    ],
)
def test_description_of_what_is_not_here_is_refused(folder: Path, tmp_path: Path, content: dict, message: str):
    described = {**json.loads((folder / "config.json").read_text()), **content}
    (tmp_path / "config.json").write_text(json.dumps(described))
    write_weights(tmp_path / "model.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(InputError, match=message):
        find_model(tmp_path)


def test_timms_resnet_as_transformers_4_described_it(folder: Path, tmp_path: Path):
    described = json.loads((folder / "config.json").read_text())
    described |= {"backbone_config": None, "use_timm_backbone": True, "backbone": "resnet101.a1_in1k"}
    (tmp_path / "config.json").write_text(json.dumps(described))
    write_weights(tmp_path / "model.safetensors", {"x": torch.zeros(1)})
    assert find_model(tmp_path).MODEL.RESNETS.DEPTH == 101


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 2),
        ("MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone"),
        ("INPUT.FORMAT", "BGR"),
    ],
)
def test_model_that_they_have_not_is_refused(folder: Path, key: str, value: Any):
    from maskformer.exporting.hugging_face_config import describe_model

    cfg = find_model(folder)
    cfg.defrost()
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=rf"{key} is {value!r}.*Hugging Face's "):
        describe_model(cfg, None)


def test_pictures_of_a_fixed_size_keep_their_shape_and_it_is_said(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    import logging

    from transformers import Mask2FormerImageProcessor

    monkeypatch.setattr(logging.getLogger("maskformer"), "propagate", True)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    write_weights(tmp_path / "model.safetensors", {"x": torch.zeros(1)})
    Mask2FormerImageProcessor(size={"height": 384, "width": 512}).save_pretrained(tmp_path)
    cfg = find_model(tmp_path)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (384, 1333)
    assert "384 x 512" in caplog.text and "INPUT.MIN_SIZE_TEST" in caplog.text
