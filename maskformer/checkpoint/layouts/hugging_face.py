"""Hugging Face's MaskFormer, with ResNet or Swin backbones: its parameters by our names, and ours by its names."""

from __future__ import annotations

import re

import torch

from .layout import Layout, NameMap, StateDict, drop, join_projections, split_projections

_ENCODER = "model.pixel_level_module.encoder."
_FPN = "model.pixel_level_module.decoder.fpn."
_RESNET_LAYER = _ENCODER + "encoder.stages.{i}.layers.{j}."
_SWIN_BLOCK = _ENCODER + "model.encoder.layers.{i}.blocks.{j}."
_DECODER_LAYER = "model.transformer_module.decoder.layers.{i}."
_OUR_DECODER = "sem_seg_head.pixel_decoder."
_OUR_LAYER = "sem_seg_head.predictor.transformer.decoder.layers.{i}."

# A norm comes before its convolution, whose name begins our name of the norm.
_NAMES = NameMap(
    [
        (_ENCODER + "embedder.embedder.normalization.", "backbone.stem.conv1.norm."),
        (_ENCODER + "embedder.embedder.convolution.", "backbone.stem.conv1."),
        (_RESNET_LAYER + "shortcut.normalization.", "backbone.res{2+i}.{j}.shortcut.norm."),
        (_RESNET_LAYER + "shortcut.convolution.", "backbone.res{2+i}.{j}.shortcut."),
        (_RESNET_LAYER + "layer.{k}.normalization.", "backbone.res{2+i}.{j}.conv{1+k}.norm."),
        (_RESNET_LAYER + "layer.{k}.convolution.", "backbone.res{2+i}.{j}.conv{1+k}."),
        (_ENCODER + "model.embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
        (_ENCODER + "model.embeddings.norm.", "backbone.patch_embed.norm."),
        (_SWIN_BLOCK + "layernorm_before.", "backbone.layers.{i}.blocks.{j}.norm1."),
        (_SWIN_BLOCK + "layernorm_after.", "backbone.layers.{i}.blocks.{j}.norm2."),
        (_SWIN_BLOCK + "attention.output.dense.", "backbone.layers.{i}.blocks.{j}.attn.proj."),
        (_SWIN_BLOCK + "attention.self.", "backbone.layers.{i}.blocks.{j}.attn."),
        (_SWIN_BLOCK + "intermediate.dense.", "backbone.layers.{i}.blocks.{j}.mlp.fc1."),
        (_SWIN_BLOCK + "output.dense.", "backbone.layers.{i}.blocks.{j}.mlp.fc2."),
        (_ENCODER + "model.encoder.layers.{i}.downsample.", "backbone.layers.{i}.downsample."),
        (_ENCODER + "hidden_states_norms.{i}.", "backbone.norm{i}."),
        (_FPN + "stem.1.", _OUR_DECODER + "layer_4.norm."),
        (_FPN + "stem.0.", _OUR_DECODER + "layer_4."),
        (_FPN + "layers.{i}.proj.1.", _OUR_DECODER + "adapter_{3-i}.norm."),
        (_FPN + "layers.{i}.proj.0.", _OUR_DECODER + "adapter_{3-i}."),
        (_FPN + "layers.{i}.block.1.", _OUR_DECODER + "layer_{3-i}.norm."),
        (_FPN + "layers.{i}.block.0.", _OUR_DECODER + "layer_{3-i}."),
        ("model.pixel_level_module.decoder.mask_projection.", _OUR_DECODER + "mask_features."),
        (_DECODER_LAYER + "self_attn_layer_norm.", _OUR_LAYER + "norm1."),
        (_DECODER_LAYER + "encoder_attn_layer_norm.", _OUR_LAYER + "norm2."),
        (_DECODER_LAYER + "final_layer_norm.", _OUR_LAYER + "norm3."),
        (_DECODER_LAYER + "fc{k}.", _OUR_LAYER + "linear{k}."),
        (_DECODER_LAYER + "self_attn.", _OUR_LAYER + "self_attn."),
        (_DECODER_LAYER + "encoder_attn.", _OUR_LAYER + "multihead_attn."),
        ("model.transformer_module.decoder.layernorm.", "sem_seg_head.predictor.transformer.decoder.norm."),
        ("model.transformer_module.queries_embedder.", "sem_seg_head.predictor.query_embed."),
        ("model.transformer_module.input_projection.", "sem_seg_head.predictor.input_proj."),
        ("mask_embedder.{i}.0.", "sem_seg_head.predictor.mask_embed.layers.{i}."),
        ("class_predictor.", "sem_seg_head.predictor.class_embed."),
        ("criterion.", "criterion."),
    ]
)
# What stands for query, key and value apart, and joined, in the decoder and in Swin.
_DECODER_PARTS, _DECODER_WHOLE = ("q_proj.", "k_proj.", "v_proj."), "in_proj_"
_SWIN_PARTS = ("attention.self.query.", "attention.self.key.", "attention.self.value.")
_SWIN_WHOLE = "attention.self.qkv."
# Names that transformers 5 has in memory, not in files.
_NEWER_NAMES = re.compile(r"^(model\.transformer_module\..*\.)(?:mlp\.(?=fc)|o(?=_proj\.))")
_UNUSED_NORM = _ENCODER + "model.layernorm."  # of Swin's last output, before the norm that counts


def _convert_hugging_face(state: StateDict) -> StateDict:
    """From the names of a saved file, or of a model in memory."""
    state = {
        _NEWER_NAMES.sub(lambda match: match[1] + ("out" if match[0].endswith("o") else ""), name): tensor
        for name, tensor in state.items()
    }
    state = drop(state, rf"\.num_batches_tracked$|^{re.escape(_UNUSED_NORM)}")
    state = join_projections(state, _DECODER_PARTS, _DECODER_WHOLE)
    state = join_projections(state, _SWIN_PARTS, _SWIN_WHOLE)
    return _NAMES.rename(state)


def to_hugging_face(state: StateDict) -> tuple[StateDict, list[str]]:
    """Bring our parameters to the names of Hugging Face's files.

    Args:
        state: tensors by our names.

    Returns:
        The tensors by its names, and those of our names that it has no place for.
    """
    names = {name: _NAMES.to_theirs(name) for name in state}
    renamed = {theirs: state[name] for name, theirs in names.items() if theirs is not None}
    renamed = split_projections(renamed, _DECODER_WHOLE, _DECODER_PARTS)
    renamed = split_projections(renamed, _SWIN_WHOLE, _SWIN_PARTS)
    for name in [name for name in renamed if name.endswith(".running_var")]:
        renamed[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    last_norm = state.get("backbone.norm3.weight")
    if last_norm is not None:
        renamed[_UNUSED_NORM + "weight"] = torch.ones_like(last_norm)
        renamed[_UNUSED_NORM + "bias"] = torch.zeros_like(last_norm)
    return renamed, [name for name, theirs in names.items() if theirs is None]


HUGGING_FACE = Layout(
    name="Hugging Face MaskFormer",
    marks=(r"model\.pixel_level_module\.", r"model\.transformer_module\.", r"class_predictor\."),
    convert=_convert_hugging_face,
    never_holds=r"\.relative_position_index$",
)
