from __future__ import annotations

import pytest
import torch
from reference_cases import read_json
from torch import Tensor

from maskformer.checkpoint import LAYOUTS, convert_weights
from maskformer.checkpoint.layouts.openmmlab import reorder_merged_channels
from maskformer.structures import InputError

SWIN_TINY = {name: tuple(shape) for name, shape, *_ in read_json("parameters", "maskformer_swin_tiny_ade.json")}
R50 = {name: tuple(shape) for name, shape, *_ in read_json("parameters", "maskformer_R50_ade.json")}
SWIN_BACKBONE = {name: shape for name, shape in SWIN_TINY.items() if name.startswith("backbone.")}


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def swin_release() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official file of Swin-T for ImageNet."""
    backbone = {name.removeprefix("backbone."): shape for name, shape in SWIN_BACKBONE.items()}
    release = {
        name: shape for name, shape in backbone.items() if not name.startswith(("norm0", "norm1", "norm2", "norm3"))
    }
    masks = {"layers.0.blocks.1.attn_mask": (64, 49, 49), "layers.2.blocks.5.attn_mask": (4, 49, 49)}
    return {**release, **masks, "norm.weight": (768,), "norm.bias": (768,), "head.weight": (1000, 768)}


def as_timm(release: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    renamed = {}
    for name, shape in release.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
        renamed[name] = shape
    return renamed


@pytest.mark.parametrize("timm", [False, True])
def test_swin_release_has_the_names_and_shapes_of_the_backbone(timm: bool):
    release = as_timm(swin_release()) if timm else swin_release()
    conversion = convert_weights(tensors(release), "swin.pth")
    needed = {name: shape for name, shape in SWIN_BACKBONE.items() if not name.startswith("backbone.norm")}
    if timm:  # it makes them from the window's size, as we do
        needed = {name: shape for name, shape in needed.items() if not name.endswith("relative_position_index")}
    converted = shapes_of(conversion.state)
    unused = {"norm.weight": (768,), "norm.bias": (768,), "head.weight": (1000, 768)}
    assert converted == {**needed, **unused}
    assert conversion.layout.backbone_only


def test_released_maskformers_keep_their_names():
    for shapes in (R50, SWIN_TINY):
        conversion = convert_weights(tensors(shapes), "model.pth")
        assert shapes_of(conversion.state) == shapes
        assert conversion.renamed == 0


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["module.sem_seg_head.layer_1.weight"], "MaskFormer (this package or the original)"),
        (["stem.conv1.weight", "res2.0.conv1.weight", "stem.fc.bias"], "Detectron2 ResNet"),
        (["conv1.weight", "layer1.0.conv1.weight", "layer4.0.bn1.weight", "fc.bias"], "torchvision or timm ResNet"),
        (
            ["decode_head.transformer_decoder.post_norm.bias", "decode_head.cls_embed.bias"],
            "OpenMMLab MaskFormer (mmdet, mmsegmentation)",
        ),
    ],
)
def test_layout_is_told_by_names(names: list[str], layout: str):
    state = {name: torch.zeros(1) for name in names}
    assert convert_weights(state, "weights").layout.name == layout


def test_no_two_layouts_fit_the_same_names():
    for names in (R50, SWIN_TINY, swin_release(), as_timm(swin_release())):
        fitting = [layout.name for layout in LAYOUTS if layout.fits(names)]
        assert len([name for name in fitting if name != "MaskFormer's backbone alone"]) == 1


def test_unknown_layout_is_refused_with_some_names_and_the_layouts_known():
    with pytest.raises(InputError, match=r"bert\.bin is not known\. Parameters such as encoder\.x .*OpenMMLab"):
        convert_weights({"encoder.x": torch.zeros(1)}, "bert.bin")


def test_detectron2_resnet_is_put_under_the_backbone_without_its_classifier():
    state = {name: torch.zeros(1) for name in ("stem.conv1.weight", "res2.0.conv1.norm.bias", "stem.fc.weight")}
    converted = convert_weights(state, "R-50.pkl").state
    assert list(converted) == ["backbone.stem.conv1.weight", "backbone.res2.0.conv1.norm.bias", "stem.fc.weight"]


def test_resnet_that_pools_in_its_shortcuts_is_refused():
    names = ["conv1.weight", "layer1.0.conv1.weight", "layer4.0.downsample.2.weight"]
    with pytest.raises(InputError, match="resnet50d"):
        convert_weights({name: torch.zeros(1) for name in names}, "resnet50d.pth")


def test_names_of_the_second_mmdet_are_read():
    names = {
        "panoptic_head.transformer_decoder.layers.1.attentions.0.attn.in_proj_weight": "self_attn.in_proj_weight",
        "panoptic_head.transformer_decoder.layers.1.attentions.1.attn.out_proj.bias": "multihead_attn.out_proj.bias",
        "panoptic_head.transformer_decoder.layers.1.ffns.0.layers.0.0.weight": "linear1.weight",
        "panoptic_head.transformer_decoder.layers.1.ffns.0.layers.1.weight": "linear2.weight",
        "panoptic_head.transformer_decoder.layers.1.norms.2.weight": "norm3.weight",
    }
    state = {**{name: torch.zeros(1) for name in names}, "panoptic_head.cls_embed.bias": torch.zeros(1)}
    layer = "sem_seg_head.predictor.transformer.decoder.layers.1."
    expected = [layer + name for name in names.values()] + ["sem_seg_head.predictor.class_embed.bias"]
    assert list(convert_weights(state, "model.pth").state) == expected


def test_patch_merging_channels_are_reordered():
    # torch.nn.Unfold numbers a 2x2 patch of 2 channels as channel, row, column; Swin's release as column, row, channel.
    patch = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]])  # channel, row, column
    unfolded = torch.nn.functional.unfold(patch[None], 2).flatten()
    released = torch.cat([patch[:, 0, 0], patch[:, 1, 0], patch[:, 0, 1], patch[:, 1, 1]])
    assert torch.equal(reorder_merged_channels(unfolded), released)
    assert torch.equal(reorder_merged_channels(unfolded.expand(3, 8)), released.expand(3, 8))


HALF_A_QUERY = "model.transformer_module.decoder.layers.0.self_attn.q_proj.weight"
OF_HUGGING_FACE = ("model.pixel_level_module.x", "model.transformer_module.x", "class_predictor.weight")
OF_OPENMMLAB = ("panoptic_head.transformer_decoder.x", "panoptic_head.cls_embed.weight")
SWIN_OF_OPENMMLAB = (
    *OF_OPENMMLAB,
    "backbone.patch_embed.projection.weight",
    "backbone.stages.0.downsample.norm.weight",
)


@pytest.mark.parametrize(
    "names",
    [(*OF_HUGGING_FACE, HALF_A_QUERY), SWIN_OF_OPENMMLAB, (*OF_OPENMMLAB, f"backbone.layer{'1' * 5000}.0.conv1.weight"),
     (*SWIN_OF_OPENMMLAB[:3], f"backbone.stages.{'1' * 5000}.blocks.0.norm1.weight")],
)  # fmt: skip
def test_known_layout_with_parts_missing_or_of_odd_shapes_is_one_sentence(names: tuple[str, ...]):
    try:
        converted = convert_weights({name: torch.ones(3) for name in names}, "half.pth").state
    except InputError as error:
        assert "half.pth" in str(error) and len(str(error)) < 2000
    else:
        assert len(converted) == len(names)
