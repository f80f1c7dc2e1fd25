"""Hugging Face's MaskFormer and Mask2Former, with ResNet or Swin: their parameters by our names, and ours by theirs."""

from __future__ import annotations

import re
from functools import partial

import torch

from .backbones import convert_resnet
from .eomt import to_hugging_face_eomt
from .layout import Layout, NameMap, StateDict, drop, join_projections, split_projections

_ENCODER = "model.pixel_level_module.encoder."
_PIXEL_DECODER = "model.pixel_level_module.decoder."
_TRANSFORMER = "model.transformer_module."
_RESNET_LAYER = _ENCODER + "encoder.stages.{i}.layers.{j}."
_FPN = _PIXEL_DECODER + "fpn."
_ENCODER_LAYER = _PIXEL_DECODER + "encoder.layers.{i}."
_DECODER_LAYER = _TRANSFORMER + "decoder.layers.{i}."
_OUR_DECODER = "sem_seg_head.pixel_decoder."
_OUR_ENCODER_LAYER = _OUR_DECODER + "transformer.encoder.layers.{i}."
_OUR_PREDICTOR = "sem_seg_head.predictor."
_OUR_LAYER = _OUR_PREDICTOR + "transformer.decoder.layers.{i}."

# A norm comes before its convolution, whose name begins our name of the norm.
_RESNET = [
    (_ENCODER + "embedder.embedder.normalization.", "backbone.stem.conv1.norm."),
    (_ENCODER + "embedder.embedder.convolution.", "backbone.stem.conv1."),
    (_RESNET_LAYER + "shortcut.normalization.", "backbone.res{2+i}.{j}.shortcut.norm."),
    (_RESNET_LAYER + "shortcut.convolution.", "backbone.res{2+i}.{j}.shortcut."),
    (_RESNET_LAYER + "layer.{k}.normalization.", "backbone.res{2+i}.{j}.conv{1+k}.norm."),
    (_RESNET_LAYER + "layer.{k}.convolution.", "backbone.res{2+i}.{j}.conv{1+k}."),
]
_HEAD = [
    (_PIXEL_DECODER + "mask_projection.", _OUR_DECODER + "mask_features."),
    (_TRANSFORMER + "queries_embedder.", _OUR_PREDICTOR + "query_embed."),
    ("class_predictor.", _OUR_PREDICTOR + "class_embed."),
    ("criterion.", "criterion."),
]


def _swin(swin: str, output_norm: str) -> list[tuple[str, str]]:
    block = swin + "encoder.layers.{i}.blocks.{j}."
    return [
        (swin + "embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
        (swin + "embeddings.norm.", "backbone.patch_embed.norm."),
        (block + "layernorm_before.", "backbone.layers.{i}.blocks.{j}.norm1."),
        (block + "layernorm_after.", "backbone.layers.{i}.blocks.{j}.norm2."),
        (block + "attention.output.dense.", "backbone.layers.{i}.blocks.{j}.attn.proj."),
        (block + "attention.self.", "backbone.layers.{i}.blocks.{j}.attn."),
        (block + "intermediate.dense.", "backbone.layers.{i}.blocks.{j}.mlp.fc1."),
        (block + "output.dense.", "backbone.layers.{i}.blocks.{j}.mlp.fc2."),
        (swin + "encoder.layers.{i}.downsample.", "backbone.layers.{i}.downsample."),
        (_ENCODER + output_norm, "backbone.norm{i}."),
    ]


_MASKFORMER = NameMap(
    [
        *_RESNET,
        *_swin(_ENCODER + "model.", "hidden_states_norms.{i}."),
        *_HEAD,
        (_FPN + "stem.1.", _OUR_DECODER + "layer_4.norm."),
        (_FPN + "stem.0.", _OUR_DECODER + "layer_4."),
        (_FPN + "layers.{i}.proj.1.", _OUR_DECODER + "adapter_{3-i}.norm."),
        (_FPN + "layers.{i}.proj.0.", _OUR_DECODER + "adapter_{3-i}."),
        (_FPN + "layers.{i}.block.1.", _OUR_DECODER + "layer_{3-i}.norm."),
        (_FPN + "layers.{i}.block.0.", _OUR_DECODER + "layer_{3-i}."),
        (_DECODER_LAYER + "self_attn_layer_norm.", _OUR_LAYER + "norm1."),
        (_DECODER_LAYER + "encoder_attn_layer_norm.", _OUR_LAYER + "norm2."),
        (_DECODER_LAYER + "final_layer_norm.", _OUR_LAYER + "norm3."),
        (_DECODER_LAYER + "fc{k}.", _OUR_LAYER + "linear{k}."),
        (_DECODER_LAYER + "self_attn.", _OUR_LAYER + "self_attn."),
        (_DECODER_LAYER + "encoder_attn.", _OUR_LAYER + "multihead_attn."),
        (_TRANSFORMER + "decoder.layernorm.", _OUR_PREDICTOR + "transformer.decoder.norm."),
        (_TRANSFORMER + "input_projection.", _OUR_PREDICTOR + "input_proj."),
        ("mask_embedder.{i}.0.", _OUR_PREDICTOR + "mask_embed.layers.{i}."),
    ]
)
_MASK2FORMER = NameMap(
    [
        *_RESNET,
        *_swin(_ENCODER, "hidden_states_norms.stage{1+i}."),
        *_HEAD,
        (_PIXEL_DECODER + "input_projections.", _OUR_DECODER + "input_proj."),
        (_PIXEL_DECODER + "level_embed", _OUR_DECODER + "transformer.level_embed"),
        (_ENCODER_LAYER + "self_attn_layer_norm.", _OUR_ENCODER_LAYER + "norm1."),
        (_ENCODER_LAYER + "final_layer_norm.", _OUR_ENCODER_LAYER + "norm2."),
        (_ENCODER_LAYER + "fc{k}.", _OUR_ENCODER_LAYER + "linear{k}."),
        (_ENCODER_LAYER + "self_attn.", _OUR_ENCODER_LAYER + "self_attn."),
        (_PIXEL_DECODER + "adapter_{i}.1.", _OUR_DECODER + "adapter_{i}.norm."),
        (_PIXEL_DECODER + "adapter_{i}.0.", _OUR_DECODER + "adapter_{i}."),
        (_PIXEL_DECODER + "layer_{i}.1.", _OUR_DECODER + "layer_{i}.norm."),
        (_PIXEL_DECODER + "layer_{i}.0.", _OUR_DECODER + "layer_{i}."),
        (_DECODER_LAYER + "cross_attn_layer_norm.", _OUR_PREDICTOR + "transformer_cross_attention_layers.{i}.norm."),
        (_DECODER_LAYER + "cross_attn.", _OUR_PREDICTOR + "transformer_cross_attention_layers.{i}.multihead_attn."),
        (_DECODER_LAYER + "self_attn_layer_norm.", _OUR_PREDICTOR + "transformer_self_attention_layers.{i}.norm."),
        (_DECODER_LAYER + "self_attn.", _OUR_PREDICTOR + "transformer_self_attention_layers.{i}.self_attn."),
        (_DECODER_LAYER + "final_layer_norm.", _OUR_PREDICTOR + "transformer_ffn_layers.{i}.norm."),
        (_DECODER_LAYER + "fc{k}.", _OUR_PREDICTOR + "transformer_ffn_layers.{i}.linear{k}."),
        (_TRANSFORMER + "decoder.layernorm.", _OUR_PREDICTOR + "decoder_norm."),
        (_TRANSFORMER + "decoder.mask_predictor.mask_embedder.{i}.0.", _OUR_PREDICTOR + "mask_embed.layers.{i}."),
        (_TRANSFORMER + "queries_features.", _OUR_PREDICTOR + "query_feat."),
        (_TRANSFORMER + "level_embed.", _OUR_PREDICTOR + "level_embed."),
        (_TRANSFORMER + "input_projections.", _OUR_PREDICTOR + "input_proj."),
    ]
)
# Query, key and value apart, and joined, in the decoder (of Mask2Former's cross-attention they are joined) and in Swin.
_DECODER_PARTS, _DECODER_WHOLE = ("q_proj.", "k_proj.", "v_proj."), "in_proj_"
_SWIN_PARTS = ("attention.self.query.", "attention.self.key.", "attention.self.value.")
_SWIN_WHOLE = "attention.self.qkv."
# Names that transformers 5 has in memory, and the same in files.
_NEWER_NAMES = (
    (r"^(model\.transformer_module\..*\.)mlp\.(?=fc)", r"\1"),
    (r"^(model\.transformer_module\..*\.)o(?=_proj\.)", r"\1out"),
    (r"^(model\.pixel_level_module\.encoder\.)swin\.(?=encoder|embeddings)", r"\1"),
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"(\.blocks\.\d+\.)mlp\.fc1\.", r"\1intermediate.dense."),
    (r"(\.blocks\.\d+\.)mlp\.fc2\.", r"\1output.dense."),
)
# The norm of Swin's last output, before the norm that counts, in MaskFormer and Mask2Former.
_UNUSED_NORMS = (_ENCODER + "model.layernorm.", _ENCODER + "swin.layernorm.")
_TIMM = _ENCODER + "_backbone."  # a ResNet that timm made


def _convert(state: StateDict, *, names: NameMap) -> StateDict:
    """From the names of a saved file, or of a model in memory."""
    for pattern, replacement in _NEWER_NAMES:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    state = drop(state, rf"\.num_batches_tracked$|^(?:{'|'.join(map(re.escape, _UNUSED_NORMS))})")
    of_timm = {name.removeprefix(_TIMM): tensor for name, tensor in state.items() if name.startswith(_TIMM)}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_TIMM)}
    state = join_projections(state, _DECODER_PARTS, _DECODER_WHOLE)
    state = join_projections(state, _SWIN_PARTS, _SWIN_WHOLE)
    return {**convert_resnet(of_timm), **names.rename(state)}


def to_hugging_face(state: StateDict) -> tuple[StateDict, list[str]]:
    """Bring our parameters to the names of Hugging Face's files.

    Args:
        state: tensors by our names, of a MaskFormer, a Mask2Former or an EoMT.

    Returns:
        The tensors by its names, and those of our names that it has no place for.
    """
    if "network.q.weight" in state:
        return to_hugging_face_eomt(state)
    is_second = _OUR_PREDICTOR + "decoder_norm.weight" in state
    if is_second:  # whose Swin makes it; that of their MaskFormer has it in its files
        state = drop(state, r"\.relative_position_index$")
    names = {name: (_MASK2FORMER if is_second else _MASKFORMER).to_theirs(name) for name in state}
    renamed = {theirs: state[name] for name, theirs in names.items() if theirs is not None}
    joined = {name: renamed.pop(name) for name in list(renamed) if ".cross_attn." in name}  # as they are there too
    renamed = {**joined, **split_projections(renamed, _DECODER_WHOLE, _DECODER_PARTS)}
    renamed = split_projections(renamed, _SWIN_WHOLE, _SWIN_PARTS)
    for name in [name for name in renamed if name.endswith(".running_var")]:
        renamed[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    last_norm = state.get("backbone.norm3.weight")
    if last_norm is not None:
        renamed[_UNUSED_NORMS[is_second] + "weight"] = torch.ones_like(last_norm)
        renamed[_UNUSED_NORMS[is_second] + "bias"] = torch.zeros_like(last_norm)
    return renamed, [name for name, theirs in names.items() if theirs is None]


_MARKS = (r"model\.pixel_level_module\.", r"model\.transformer_module\.", r"class_predictor\.")
HUGGING_FACE = Layout(
    name="Hugging Face MaskFormer",
    marks=_MARKS,
    convert=partial(_convert, names=_MASKFORMER),
    never_holds=r"\.relative_position_index$",
)
HUGGING_FACE_2 = Layout(
    name="Hugging Face Mask2Former",
    marks=(*_MARKS, r"model\.transformer_module\.queries_features\."),
    convert=partial(_convert, names=_MASK2FORMER),
    never_holds=r"\.relative_position_index$",
)
