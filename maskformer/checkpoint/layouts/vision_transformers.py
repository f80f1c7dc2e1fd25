"""Plain vision transformers, DINOv2 and DINOv3: their releases, timm's and Hugging Face's; the backbone of EoMT.

A position of the class token, which is a constant, is added to the token: our tables are for patches alone. Tables and
patch kernels of other sizes are resampled where the model is known (maskformer/checkpoint/fitting.py).
"""

from __future__ import annotations

import math
import re

import torch

from maskformer.structures import InputError

from .layout import Layout, NameMap, StateDict, drop, join_projections, split_projections

VIT = "network.encoder.backbone."
# Hugging Face's names of DINOv2's parameters in EoMT, and ours.
VIT_NAMES = [
    ("embeddings.cls_token", VIT + "cls_token"),
    ("embeddings.register_tokens", VIT + "reg_token"),
    ("embeddings.position_embeddings", VIT + "pos_embed"),
    ("embeddings.patch_embeddings.projection.", VIT + "patch_embed.proj."),
    ("layers.{i}.norm{k}.", VIT + "blocks.{i}.norm{k}."),
    ("layers.{i}.attention.out_proj.", VIT + "blocks.{i}.attn.proj."),
    ("layers.{i}.attention.", VIT + "blocks.{i}.attn."),
    ("layers.{i}.layer_scale{k}.lambda1", VIT + "blocks.{i}.ls{k}.gamma"),
    ("layers.{i}.mlp.", VIT + "blocks.{i}.mlp."),
    ("layernorm.", VIT + "norm."),
]
# DINOv3's parameters have other names there.
_DINOV3_NAMES = (
    (".attention.o_proj.", ".attention.out_proj."),
    (".mlp.up_proj.", ".mlp.fc1."),
    (".mlp.down_proj.", ".mlp.fc2."),
    ("embeddings.patch_embeddings.", "embeddings.patch_embeddings.projection."),
)
_PARTS, _WHOLE = (".q_proj.", ".k_proj.", ".v_proj."), ".qkv."
_GATE = ".mlp.gate_proj."


def join_blocks(state: StateDict) -> StateDict:
    """Join what Hugging Face keeps apart in each block: query, key and value, and both halves of a gated network.

    Args:
        state: names of DINOv2 or DINOv3 there.

    Returns:
        Names of DINOv2 there. Where keys have no bias, the biases of queries and values are apart.

    Raises:
        InputError: it is a DINOv3 whose keys have a bias.
    """
    if any(name.endswith(".k_proj.bias") for name in state):
        if not any("position_embeddings" in name for name in state):
            raise InputError("These weights are of a DINOv3 whose keys have a bias, which models here have not.")
    else:
        state = {re.sub(r"\.([qv])_proj\.bias$", r".\1_bias", name): tensor for name, tensor in state.items()}
    joined = join_projections(state, _PARTS, _WHOLE)
    for name in [name for name in joined if _GATE in name]:
        rest = name.replace(_GATE, ".mlp.up_proj.")
        joined[rest] = torch.cat([joined.pop(name), joined[rest]])
    has_dinov2_names = any("patch_embeddings.projection." in name for name in state)
    for theirs, ours in _DINOV3_NAMES[: -1 if has_dinov2_names else None]:
        joined = {name.replace(theirs, ours): tensor for name, tensor in joined.items()}
    return joined


def split_blocks(state: StateDict) -> StateDict:
    """The opposite of ``join_blocks``: names of DINOv3 where keys have no bias."""
    is_dinov3 = any(name.endswith(".q_bias") for name in state)
    split = {re.sub(r"\.([qv])_bias$", r".\1_proj.bias", name): tensor for name, tensor in state.items()}
    split = split_projections(split, _WHOLE, _PARTS)
    if is_dinov3:
        for theirs, ours in _DINOV3_NAMES:
            split = {name.replace(ours, theirs): tensor for name, tensor in split.items()}
        return split
    second = {name: split[name.replace(".fc1.weight", ".fc2.weight")] for name in split if ".mlp.fc1.weight" in name}
    for name in [name for name, other in second.items() if len(split[name]) == 2 * other.shape[1]]:
        for weight in (name, name.replace("weight", "bias")):
            gate, rest = split.pop(weight).chunk(2)
            split[weight.replace(".mlp.fc1.", _GATE)] = gate.clone()
            split[weight.replace("fc1", "up_proj")] = rest.clone()
            split[weight.replace("fc1", "down_proj")] = split.pop(weight.replace("fc1", "fc2"))
    return split


_NAMES = NameMap(VIT_NAMES)
# Of Hugging Face's files as saved, and of models in memory.
_HUGGING_FACE_VARIANTS = (
    (r"^(?:dinov2|dinov2_with_registers|dinov3_vit)\.", ""),
    (r"^(?:(?:encoder|model)\.)*layer\.", "layers."),
    (r"^norm\.", "layernorm."),
    (r"\.attention\.attention\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.out_proj."),
    (r"\.attention\.([qkv])(?:uery|ey|alue)\.", r".attention.\1_proj."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
)
# timm's DINOv2 has our names; these are of the releases, and of timm's DINOv3.
_RELEASE_VARIANTS = (
    (r"^(?:register_tokens|storage_tokens)$", "reg_token"),
    (r"^(blocks\.\d+\.mlp\.)w12\.", r"\1fc1."),
    (r"^(blocks\.\d+\.mlp\.)w3\.", r"\1fc2."),
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
    (r"^(?=(?:cls_token|reg_token|pos_embed|patch_embed|blocks|norm)\b)", VIT),
)
_UNUSED = r"mask_token$|\.bias_mask$|^rope_embed\."  # of their pre-training; and constants


def _renamed(state: StateDict, variants: tuple[tuple[str, str], ...]) -> StateDict:
    for pattern, replacement in variants:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return state


def _convert_hugging_face(state: StateDict) -> StateDict:
    return _complete(_NAMES.rename(join_blocks(_renamed(drop(state, _UNUSED), _HUGGING_FACE_VARIANTS))))


def _convert_release(state: StateDict) -> StateDict:
    return _complete(_renamed(drop(state, _UNUSED), _RELEASE_VARIANTS))


def _complete(state: StateDict) -> StateDict:
    """What is there in another form, or is nothing, as ours is."""
    class_token = state[VIT + "cls_token"]
    completed = {VIT + "reg_token": class_token.new_empty(1, 0, class_token.shape[-1]), **state}
    table = state.get(VIT + "pos_embed")
    if table is None:
        return _without_key_bias(completed)
    length = table.shape[1]
    if length > 1 and math.isqrt(length - 1) ** 2 == length - 1:  # as many as patches, and one
        completed[VIT + "cls_token"] = class_token + table[:, :1]
        completed[VIT + "pos_embed"] = table[:, 1:]
    return completed


def _without_key_bias(state: StateDict) -> StateDict:
    """DINOv3's blocks: the release masks the bias of its keys; some of timm's have none at all, for theirs are 0."""
    completed = dict(state)
    for name in [name for name in state if name.endswith(".attn.qkv.weight")]:
        attention = name.removesuffix("qkv.weight")
        none = state[name].new_zeros(3 * state[name].shape[1])
        query, _, value = completed.pop(attention + "qkv.bias", none).chunk(3)
        completed.setdefault(attention + "q_bias", query.clone())
        completed.setdefault(attention + "v_bias", value.clone())
    return completed


HUGGING_FACE_VIT = Layout(
    name="Hugging Face DINOv2 or DINOv3",
    marks=(r"(?:\w+\.)?embeddings\.patch_embeddings\.", r"(?:\w+\.)*layer\.0\.layer_scale1\.lambda1$"),
    convert=_convert_hugging_face,
    backbone_only=True,
)
VIT_RELEASE = Layout(
    name="DINOv2 or DINOv3 of their releases or timm",
    marks=(r"cls_token$", r"patch_embed\.proj\.weight$", r"blocks\.0\.(?:ls1\.gamma|gamma_1)$"),
    convert=_convert_release,
    backbone_only=True,
)
