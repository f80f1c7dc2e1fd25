"""OpenMMLab's MaskFormer: checkpoints of mmdet and mmsegmentation, with ResNet or Swin backbones.

mmsegmentation has the same network under ``decode_head``; names of mmdet 2 (``attentions.0``, ``ffns.0``) are read too.
"""

from __future__ import annotations

import re

from torch import Tensor

from .backbones import convert_resnet
from .layout import Layout, NameMap, StateDict, drop

_DECODER = "sem_seg_head.pixel_decoder."
_PREDICTOR = "sem_seg_head.predictor."
_ENCODER_LAYER = (
    "panoptic_head.pixel_decoder.encoder.layers.{i}.",
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.{i}.",
)
_DECODER_LAYER = (
    "panoptic_head.transformer_decoder.layers.{i}.",
    "sem_seg_head.predictor.transformer.decoder.layers.{i}.",
)
_HEAD_NAMES = NameMap(
    [
        *(
            (f"panoptic_head.pixel_decoder.{theirs}.{part}.", f"{_DECODER}{ours}.{name}")
            for theirs, ours in (
                ("lateral_convs.{i}", "adapter_{1+i}"),
                ("output_convs.{i}", "layer_{1+i}"),
                ("last_feat_conv", "layer_4"),
                ("encoder_out_proj", "layer_4"),
            )
            for part, name in (("conv", ""), ("gn", "norm."))
        ),
        ("panoptic_head.pixel_decoder.encoder_in_proj.", _DECODER + "input_proj."),
        ("panoptic_head.pixel_decoder.mask_feature.", _DECODER + "mask_features."),
        *(
            (theirs + part, ours + name)
            for theirs, ours in (_ENCODER_LAYER, _DECODER_LAYER)
            for part, name in (
                ("self_attn.attn.", "self_attn."),
                ("cross_attn.attn.", "multihead_attn."),
                ("ffn.layers.0.0.", "linear1."),
                ("ffn.layers.1.", "linear2."),
                ("norms.{k}.", "norm{1+k}."),
            )
        ),
        ("panoptic_head.transformer_decoder.post_norm.", _PREDICTOR + "transformer.decoder.norm."),
        ("panoptic_head.decoder_input_proj.", _PREDICTOR + "input_proj."),
        ("panoptic_head.query_embed.", _PREDICTOR + "query_embed."),
        ("panoptic_head.cls_embed.", _PREDICTOR + "class_embed."),
        *((f"panoptic_head.mask_embed.{2 * i}.", f"{_PREDICTOR}mask_embed.layers.{i}.") for i in range(3)),
    ]
)
_SWIN_NAMES = NameMap(
    [
        ("patch_embed.projection.", "backbone.patch_embed.proj."),
        ("patch_embed.norm.", "backbone.patch_embed.norm."),
        ("stages.{i}.blocks.{j}.attn.w_msa.", "backbone.layers.{i}.blocks.{j}.attn."),
        ("stages.{i}.blocks.{j}.ffn.layers.0.0.", "backbone.layers.{i}.blocks.{j}.mlp.fc1."),
        ("stages.{i}.blocks.{j}.ffn.layers.1.", "backbone.layers.{i}.blocks.{j}.mlp.fc2."),
        ("stages.{i}.blocks.{j}.norm{k}.", "backbone.layers.{i}.blocks.{j}.norm{k}."),
        ("stages.{i}.downsample.", "backbone.layers.{i}.downsample."),
        ("norm{i}.", "backbone.norm{i}."),
    ]
)
_OLDER_NAMES = (
    (r"^decode_head\.", "panoptic_head."),
    (r"(layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
    (r"(layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)


def _convert_openmmlab(state: StateDict) -> StateDict:
    """From names of mmdet (2 or 3) or mmsegmentation, with Swin's patch merging in our order of channels."""
    for pattern, replacement in _OLDER_NAMES:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    backbone = {name[len("backbone.") :]: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    head = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    is_swin = "patch_embed.projection.weight" in backbone
    converted = _convert_swin(backbone) if is_swin else convert_resnet(backbone)
    return {**converted, **_HEAD_NAMES.rename(head)}


def _convert_swin(state: StateDict) -> StateDict:
    state = drop(state, r"\.relative_position_index$")  # it follows from the window's size
    return {
        _SWIN_NAMES.to_ours(name) or f"backbone.{name}": reorder_merged_channels(tensor)
        if re.search(r"\.downsample\.(?:norm|reduction)\.", name)
        else tensor
        for name, tensor in state.items()
    }


def reorder_merged_channels(tensor: Tensor) -> Tensor:
    """Bring the 4 x channels of a patch merging from OpenMMLab's order to that of Swin's release.

    Args:
        tensor: (..., 4 * channels): ``torch.nn.Unfold`` has them as channel, row, column.

    Returns:
        The same as column, row, channel.
    """
    *leading, merged = tensor.shape
    return tensor.reshape(*leading, merged // 4, 2, 2).movedim(-3, -1).transpose(-3, -2).reshape(tensor.shape)


OPENMMLAB = Layout(
    name="OpenMMLab MaskFormer (mmdet, mmsegmentation)",
    marks=(r"(?:panoptic|decode)_head\.transformer_decoder\.", r"(?:panoptic|decode)_head\.cls_embed\."),
    convert=_convert_openmmlab,
    never_holds=r"criterion\.empty_weight$|\.relative_position_index$",
)
