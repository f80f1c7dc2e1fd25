"""OpenMMLab's MaskFormer and Mask2Former: checkpoints of mmdet and mmsegmentation, with ResNet or Swin backbones.

mmsegmentation has the same networks under ``decode_head``; names of mmdet 2 (``attentions.0``, ``ffns.0``) are read
too.
"""

from __future__ import annotations

import re
from functools import partial

from torch import Tensor

from .backbones import convert_resnet
from .layout import Layout, NameMap, StateDict, drop

_HEAD = "panoptic_head."
_DECODER = "sem_seg_head.pixel_decoder."
_PREDICTOR = "sem_seg_head.predictor."
_ENCODER_LAYER = (_HEAD + "pixel_decoder.encoder.layers.{i}.", _DECODER + "transformer.encoder.layers.{i}.")
_THEIR_LAYER = _HEAD + "transformer_decoder.layers.{i}."
_DECODER_LAYER = (_THEIR_LAYER, _PREDICTOR + "transformer.decoder.layers.{i}.")


def _convs(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    """Of convolutions of the pixel decoder, each with a norm."""
    return [
        (f"{_HEAD}pixel_decoder.{theirs}.{part}.", f"{_DECODER}{ours}.{name}")
        for theirs, ours in pairs
        for part, name in (("conv", ""), ("gn", "norm."))
    ]


_HEAD_NAMES = [
    *_convs(("lateral_convs.{i}", "adapter_{1+i}"), ("output_convs.{i}", "layer_{1+i}")),
    (_HEAD + "pixel_decoder.mask_feature.", _DECODER + "mask_features."),
    (_HEAD + "query_embed.", _PREDICTOR + "query_embed."),
    (_HEAD + "cls_embed.", _PREDICTOR + "class_embed."),
    *((f"{_HEAD}mask_embed.{2 * i}.", f"{_PREDICTOR}mask_embed.layers.{i}.") for i in range(3)),
]
_LAYER_PARTS = (("ffn.layers.0.0.", "linear1."), ("ffn.layers.1.", "linear2."), ("norms.{k}.", "norm{1+k}."))
_MASKFORMER = NameMap(
    [
        *_HEAD_NAMES,
        *_convs(("last_feat_conv", "layer_4"), ("encoder_out_proj", "layer_4")),
        (_HEAD + "pixel_decoder.encoder_in_proj.", _DECODER + "input_proj."),
        *(
            (theirs + part, ours + name)
            for theirs, ours in (_ENCODER_LAYER, _DECODER_LAYER)
            for part, name in (
                ("self_attn.attn.", "self_attn."),
                ("cross_attn.attn.", "multihead_attn."),
                *_LAYER_PARTS,
            )
        ),
        (_HEAD + "transformer_decoder.post_norm.", _PREDICTOR + "transformer.decoder.norm."),
        (_HEAD + "decoder_input_proj.", _PREDICTOR + "input_proj."),
    ]
)
# A decoder layer's norms follow its parts: masked cross-attention, self-attention, feed-forward network.
_MASK2FORMER = NameMap(
    [
        *_HEAD_NAMES,
        (_HEAD + "pixel_decoder.input_convs.{i}.conv.", _DECODER + "input_proj.{i}.0."),
        (_HEAD + "pixel_decoder.input_convs.{i}.gn.", _DECODER + "input_proj.{i}.1."),
        (_HEAD + "pixel_decoder.level_encoding.weight", _DECODER + "transformer.level_embed"),
        *((_ENCODER_LAYER[0] + part, _ENCODER_LAYER[1] + name) for part, name in _LAYER_PARTS),
        (_ENCODER_LAYER[0] + "self_attn.", _ENCODER_LAYER[1] + "self_attn."),
        *(
            (_THEIR_LAYER + part, _PREDICTOR + name)
            for part, name in (
                ("cross_attn.attn.", "transformer_cross_attention_layers.{i}.multihead_attn."),
                ("norms.0.", "transformer_cross_attention_layers.{i}.norm."),
                ("self_attn.attn.", "transformer_self_attention_layers.{i}.self_attn."),
                ("norms.1.", "transformer_self_attention_layers.{i}.norm."),
                ("ffn.layers.0.0.", "transformer_ffn_layers.{i}.linear1."),
                ("ffn.layers.1.", "transformer_ffn_layers.{i}.linear2."),
                ("norms.2.", "transformer_ffn_layers.{i}.norm."),
            )
        ),
        (_HEAD + "transformer_decoder.post_norm.", _PREDICTOR + "decoder_norm."),
        (_HEAD + "decoder_input_projs.", _PREDICTOR + "input_proj."),
        (_HEAD + "query_feat.", _PREDICTOR + "query_feat."),
        (_HEAD + "level_embed.", _PREDICTOR + "level_embed."),
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
    (r"^decode_head\.", _HEAD),
    (r"(encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)


def _convert_openmmlab(state: StateDict, *, names: NameMap, attentions: tuple[str, str]) -> StateDict:
    """From names of mmdet (2 or 3) or mmsegmentation, with Swin's patch merging in our order of channels.

    ``attentions`` of a decoder layer are in their order, by which mmdet 2 calls them.
    """
    counted = [(rf"(decoder\.layers\.\d+)\.attentions\.{i}\.", rf"\1.{name}.") for i, name in enumerate(attentions)]
    for pattern, replacement in (*_OLDER_NAMES, *counted):
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    backbone = {name[len("backbone.") :]: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    head = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    is_swin = "patch_embed.projection.weight" in backbone
    converted = _convert_swin(backbone) if is_swin else convert_resnet(backbone)
    return {**converted, **names.rename(head)}


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


_MARKS = (r"(?:panoptic|decode)_head\.transformer_decoder\.", r"(?:panoptic|decode)_head\.cls_embed\.")
_NEVER_HOLDS = r"criterion\.empty_weight$|\.relative_position_index$"
OPENMMLAB = Layout(
    name="OpenMMLab MaskFormer (mmdet, mmsegmentation)",
    marks=_MARKS,
    convert=partial(_convert_openmmlab, names=_MASKFORMER, attentions=("self_attn", "cross_attn")),
    never_holds=_NEVER_HOLDS,
)
OPENMMLAB_2 = Layout(
    name="OpenMMLab Mask2Former (mmdet, mmsegmentation)",
    marks=(*_MARKS, r"(?:panoptic|decode)_head\.query_feat\."),
    convert=partial(_convert_openmmlab, names=_MASK2FORMER, attentions=("cross_attn", "self_attn")),
    never_holds=_NEVER_HOLDS,
)
