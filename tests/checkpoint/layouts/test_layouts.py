from __future__ import annotations

import re

import pytest
import torch
from reference_cases import read_json, read_lists
from torch import Tensor

from maskformer.checkpoint import LAYOUTS, convert_weights
from maskformer.checkpoint.layouts.openmmlab import reorder_merged_channels
from maskformer.structures import InputError

SWIN_TINY = {name: tuple(shape) for name, shape, *_ in read_json("parameters", "maskformer_swin_tiny_ade.json")}
R50 = {name: tuple(shape) for name, shape, *_ in read_json("parameters", "maskformer_R50_ade.json")}
_OF_COCO = "coco/panoptic-segmentation/"
MASK2FORMERS = {
    backbone: {name: tuple(shape) for name, shape, *_ in read_lists("parameters")[_OF_COCO + recipe]}
    for backbone, recipe in (
        ("R50", "maskformer2_R50_bs16_50ep.yaml"),
        ("swin_tiny", "swin/maskformer2_swin_tiny_bs16_50ep.yaml"),
    )
}
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


def test_released_models_keep_their_names():
    for shapes in (R50, SWIN_TINY, *MASK2FORMERS.values()):
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


@pytest.mark.parametrize("backbone", MASK2FORMERS)
def test_older_mask2formers_are_brought_to_todays_names(backbone: str):
    """Their head held the pixel decoder's parameters itself, and their queries had another name."""
    shapes = MASK2FORMERS[backbone]
    old = {
        name.replace(".pixel_decoder.", ".").replace("query_feat", "static_query"): shape
        for name, shape in shapes.items()
    }
    assert len(old.keys() - shapes.keys()) > 100
    conversion = convert_weights(tensors(old), "old.pkl")
    assert conversion.layout.name == "Mask2Former (this package or the original)"
    assert shapes_of(conversion.state) == shapes
    assert conversion.renamed == len(old.keys() - shapes.keys())


# OpenMMLab's Mask2Former by what each of its parts is called here.
OPENMMLAB_MASK2FORMER = (
    (r"^sem_seg_head\.pixel_decoder\.input_proj\.(\d)\.0\.", r"panoptic_head.pixel_decoder.input_convs.\1.conv."),
    (r"^sem_seg_head\.pixel_decoder\.input_proj\.(\d)\.1\.", r"panoptic_head.pixel_decoder.input_convs.\1.gn."),
    (r"^sem_seg_head\.pixel_decoder\.transformer\.level_embed$", "panoptic_head.pixel_decoder.level_encoding.weight"),
    (r"^sem_seg_head\.pixel_decoder\.transformer\.", "panoptic_head.pixel_decoder."),
    (r"^sem_seg_head\.pixel_decoder\.adapter_1\.norm\.", "panoptic_head.pixel_decoder.lateral_convs.0.gn."),
    (r"^sem_seg_head\.pixel_decoder\.adapter_1\.", "panoptic_head.pixel_decoder.lateral_convs.0.conv."),
    (r"^sem_seg_head\.pixel_decoder\.layer_1\.norm\.", "panoptic_head.pixel_decoder.output_convs.0.gn."),
    (r"^sem_seg_head\.pixel_decoder\.layer_1\.", "panoptic_head.pixel_decoder.output_convs.0.conv."),
    (r"^sem_seg_head\.pixel_decoder\.mask_features\.", "panoptic_head.pixel_decoder.mask_feature."),
    (r"^(panoptic_head\.pixel_decoder\.encoder\..*\.)norm1\.", r"\1norms.0."),
    (r"^(panoptic_head\.pixel_decoder\.encoder\..*\.)norm2\.", r"\1norms.1."),
    (r"^(panoptic_head\.pixel_decoder\.encoder\..*\.)linear1\.", r"\1ffn.layers.0.0."),
    (r"^(panoptic_head\.pixel_decoder\.encoder\..*\.)linear2\.", r"\1ffn.layers.1."),
    (r"^sem_seg_head\.predictor\.transformer_(?:self|cross|ffn)(?:_attention)?_layers\.(\d)\.", r"LAYER\1.\g<0>"),
    (r"LAYER(\d)\..*cross_attention_layers\.\d\.norm\.", r"LAYER\1.norms.0."),
    (r"LAYER(\d)\..*self_attention_layers\.\d\.norm\.", r"LAYER\1.norms.1."),
    (r"LAYER(\d)\..*ffn_layers\.\d\.norm\.", r"LAYER\1.norms.2."),
    (r"LAYER(\d)\..*multihead_attn\.", r"LAYER\1.cross_attn.attn."),
    (r"LAYER(\d)\..*self_attention_layers\.\d\.self_attn\.", r"LAYER\1.self_attn.attn."),
    (r"LAYER(\d)\..*linear1\.", r"LAYER\1.ffn.layers.0.0."),
    (r"LAYER(\d)\..*linear2\.", r"LAYER\1.ffn.layers.1."),
    (r"LAYER(\d)\.", r"panoptic_head.transformer_decoder.layers.\1."),
    (r"^sem_seg_head\.predictor\.decoder_norm\.", "panoptic_head.transformer_decoder.post_norm."),
    (r"^sem_seg_head\.predictor\.class_embed\.", "panoptic_head.cls_embed."),
    (r"^sem_seg_head\.predictor\.mask_embed\.layers\.0\.", "panoptic_head.mask_embed.0."),
    (r"^sem_seg_head\.predictor\.mask_embed\.layers\.1\.", "panoptic_head.mask_embed.2."),
    (r"^sem_seg_head\.predictor\.mask_embed\.layers\.2\.", "panoptic_head.mask_embed.4."),
    (r"^sem_seg_head\.predictor\.input_proj\.", "panoptic_head.decoder_input_projs."),
    (r"^sem_seg_head\.predictor\.", "panoptic_head."),  # query_feat, query_embed, level_embed
    (r"^backbone\.layers\.", "backbone.stages."),
    (r"^backbone\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^(backbone\.stages\..*\.)attn\.", r"\1attn.w_msa."),
    (r"^(backbone\.stages\..*\.)mlp\.fc1\.", r"\1ffn.layers.0.0."),
    (r"^(backbone\.stages\..*\.)mlp\.fc2\.", r"\1ffn.layers.1."),
    (r"^backbone\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.stem\.conv1\.", "backbone.conv1."),
    (r"^backbone\.res(\d)", lambda match: f"backbone.layer{int(match[1]) - 1}"),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)
# The second mmdet counts the attentions of a layer in their order: here the masked cross-attention comes first.
SECOND_MMDET = (
    (r"(pixel_decoder\.encoder\.layers\.\d)\.self_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder\.layers\.\d)\.cross_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder\.layers\.\d)\.self_attn\.", r"\1.attentions.1."),
    (r"(panoptic_head\..*layers\.\d)\.ffn\.", r"\1.ffns.0."),
)
SEGMENTATION = ((r"^panoptic_head\.", "decode_head."),)


def renamed(name: str, *patterns: tuple) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("backbone", MASK2FORMERS)
@pytest.mark.parametrize("dialect", [(), SECOND_MMDET, SEGMENTATION, (*SECOND_MMDET, *SEGMENTATION)])
def test_every_parameter_of_openmmlabs_mask2former_finds_its_place(backbone: str, dialect: tuple):
    needed = {
        name: torch.empty(shape, device="meta")
        for name, shape in MASK2FORMERS[backbone].items()
        if not name.endswith(("empty_weight", "relative_position_index"))
    }
    theirs = {renamed(name, *OPENMMLAB_MASK2FORMER, *dialect): tensor for name, tensor in needed.items()}
    assert len(theirs) == len(needed) and not any(name.startswith("sem_seg_head") for name in theirs)
    conversion = convert_weights({**theirs, "backbone.bn1.num_batches_tracked": torch.ones(())}, "model.pth")
    assert conversion.layout.name == "OpenMMLab Mask2Former (mmdet, mmsegmentation)"
    converted = {name: tensor for name, tensor in conversion.state.items() if "bn1" not in name}
    assert converted.keys() == needed.keys()
    for name, tensor in converted.items():  # the tensor itself, but for Swin's patch merging, which is reordered
        assert tensor is needed[name] or (".downsample." in name and tensor.shape == needed[name].shape)


def test_no_two_layouts_fit_the_same_names():
    for names in (R50, SWIN_TINY, swin_release(), as_timm(swin_release())):
        fitting = [layout.name for layout in LAYOUTS if layout.fits(names)]
        assert len([name for name in fitting if name != "a backbone alone, by this package's names"]) == 1


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
