"""EoMT: the original's files, and Hugging Face's in both directions; each with DINOv2's and with DINOv3's blocks."""

from __future__ import annotations

import re

import torch

from .layout import Layout, NameMap, StateDict, drop
from .vision_transformers import VIT, VIT_NAMES, join_blocks, split_blocks

_NAMES = NameMap(
    [
        ("embeddings.position_embeddings.weight", VIT + "pos_embed"),
        *VIT_NAMES,
        ("query.", "network.q."),
        ("class_predictor.", "network.class_head."),
        *((f"mask_head.fc{1 + i}.", f"network.mask_head.{2 * i}.") for i in range(3)),
        ("upscale_block.block.{j}.layernorm2d.", "network.upscale.{j}.norm."),
        ("upscale_block.block.{j}.", "network.upscale.{j}."),
        ("attn_mask_probs", "network.attn_mask_probs"),
        ("criterion.", "criterion."),
    ]
)
# The original's DINOv3 is Hugging Face's, at other places.
_ORIGINAL_DINOV3 = (
    (rf"^{re.escape(VIT)}patch_embed\.", "embeddings."),
    (rf"^{re.escape(VIT)}blocks\.", "layers."),
)
_NORMALISATION = r"^network\.encoder\.pixel_(?:mean|std)$"  # here MODEL.PIXEL_MEAN and PIXEL_STD


def _convert_original(state: StateDict) -> StateDict:
    return drop(state, _NORMALISATION)


def _convert_original_dinov3(state: StateDict) -> StateDict:
    state = drop(state, _NORMALISATION)
    for pattern, replacement in _ORIGINAL_DINOV3:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return _NAMES.rename(join_blocks(state))


def _convert_hugging_face(state: StateDict) -> StateDict:
    state = {re.sub(r"\.mlp\.weights_(in|out)\.", _weights_of, name): tensor for name, tensor in state.items()}
    converted = _NAMES.rename(join_blocks(state))
    table = converted.get(VIT + "pos_embed")
    return converted if table is None else {**converted, VIT + "pos_embed": table[None]}


def _weights_of(found: re.Match[str]) -> str:
    """The name of a gated network's matrix, which transformers 4 had."""
    return ".mlp.fc1." if found[1] == "in" else ".mlp.fc2."


def to_hugging_face_eomt(state: StateDict) -> tuple[StateDict, list[str]]:
    """Bring our parameters of an EoMT to the names of Hugging Face's files; see ``to_hugging_face``.

    There, queries attend to their own masks in inference too, wherever the probability of that is not 0: so it is.
    """
    names = {name: _NAMES.to_theirs(name) for name in state}
    renamed = {theirs: state[name] for name, theirs in names.items() if theirs is not None}
    renamed["attn_mask_probs"] = torch.zeros_like(state["network.attn_mask_probs"])
    table = renamed.get("embeddings.position_embeddings.weight")
    if table is not None:
        renamed["embeddings.position_embeddings.weight"] = table[0].clone()
    return split_blocks(renamed), [name for name, theirs in names.items() if theirs is None]


_ORIGINAL_MARKS = (r"network\.q\.weight$", r"network\.encoder\.backbone\.")
_HUGGING_FACE_MARKS = (r"query\.weight$", r"upscale_block\.block\.", r"class_predictor\.")
EOMT = Layout(name="EoMT (this package or the original)", marks=_ORIGINAL_MARKS, convert=_convert_original)
EOMT_DINOV3 = Layout(
    name="the original EoMT with DINOv3",
    marks=(*_ORIGINAL_MARKS, r"network\.encoder\.backbone\.blocks\.0\.attention\."),
    convert=_convert_original_dinov3,
    may_be_differences=True,
)
HUGGING_FACE_EOMT = Layout(name="Hugging Face EoMT", marks=_HUGGING_FACE_MARKS, convert=_convert_hugging_face)
HUGGING_FACE_EOMT_DINOV3 = Layout(
    name="Hugging Face EoMT with DINOv3",
    marks=(*_HUGGING_FACE_MARKS, r"embeddings\.patch_embeddings\.weight$"),
    convert=_convert_hugging_face,
    may_be_differences=True,
)
