"""Names of EoMT's files, and of DINOv2's and DINOv3's."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import torch
from reference_cases import REFERENCE2
from torch import Tensor, nn

from maskformer.checkpoint import convert_weights
from maskformer.checkpoint.layouts.hugging_face import to_hugging_face
from maskformer.config import load_config
from maskformer.modeling import build_eomt_network
from maskformer.structures import InputError

RELEASED = json.loads(gzip.decompress((REFERENCE2 / "eomt" / "parameters.json.gz").read_bytes()))
VIT = "network.encoder.backbone."


class Names(nn.Module):
    """The names of an EoMT, without memory for its weights."""

    def __init__(self, **keys: Any):
        super().__init__()
        thin = {"EMBED_DIM": 24, "DEPTH": 2, "NUM_HEADS": 2, "NUM_BLOCKS": 1, "IMAGE_SIZE": 64, **keys}
        options = [part for key, value in thin.items() for part in (f"MODEL.EOMT.{key}", value)]
        with torch.device("meta"):
            self.network = build_eomt_network(load_config("", ["MODEL.META_ARCHITECTURE", "EoMT", *options]))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def released(recipe: str) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape, *_ in RELEASED[recipe]}


@pytest.mark.parametrize("recipe", RELEASED)
def test_released_files_of_full_size_have_the_models_names_and_shapes(recipe: str):
    state = released(recipe)
    conversion = convert_weights(state, "pytorch_model.bin")
    is_dinov3 = "dinov3" in recipe
    assert conversion.layout.may_be_differences == is_dinov3
    dim = len(state[VIT + "norm.weight"])
    depth = len([name for name in state if name.endswith("norm2.weight")])
    queries, classes = state["network.q.weight"], state["network.class_head.bias"]
    keys = {"DEPTH": depth, "EMBED_DIM": dim, "NUM_HEADS": dim // 64, "SWIGLU": "giant" in recipe, "ROTARY": is_dinov3}
    keys |= {
        "NUM_BLOCKS": len(state["network.attn_mask_probs"]),
        "IMAGE_SIZE": int(recipe.split("_")[3][:4].strip(".")),
    }
    needed = Names(**keys).shapes()
    needed |= {"network.q.weight": tuple(queries.shape), "criterion.empty_weight": tuple(classes.shape)}
    needed |= {"network.class_head.weight": (len(classes), dim), "network.class_head.bias": tuple(classes.shape)}
    assert shapes_of(conversion.state) == needed
    back, without_place = to_hugging_face(conversion.state)
    again = convert_weights(back, "back")
    assert not without_place and again.layout.name.startswith("Hugging Face EoMT")
    assert again.layout.may_be_differences == is_dinov3
    assert shapes_of(again.state) == needed


def test_query_key_and_value_are_joined_in_this_order_and_taken_apart():
    state = {
        name: torch.zeros(tensor.shape) for name, tensor in released("coco_panoptic_small_640_2x_dinov3.yaml").items()
    }
    attention = VIT + "blocks.0.attention."
    for value, part in enumerate("qkv", start=1):
        state[f"{attention}{part}_proj.weight"].fill_(value)
    state[attention + "q_proj.bias"].fill_(4)
    state[attention + "v_proj.bias"].fill_(5)
    converted = convert_weights(state, "x").state
    ours = VIT + "blocks.0.attn."
    assert converted[ours + "qkv.weight"].mean(1).unique_consecutive().tolist() == [1, 2, 3]
    assert (converted[ours + "q_bias"] == 4).all() and (converted[ours + "v_bias"] == 5).all()
    back = to_hugging_face(converted)[0]
    for value, part in enumerate("qkv", start=1):
        assert (back[f"layers.0.attention.{part}_proj.weight"] == value).all()
    assert (back["layers.0.attention.q_proj.bias"] == 4).all() and (back["layers.0.attention.v_proj.bias"] == 5).all()
    assert "layers.0.attention.k_proj.bias" not in back


def test_names_in_wrappers_are_the_same_names():
    names = released("coco_panoptic_small_640.yaml")
    expected = convert_weights(names, "x")
    wrapped = {name.replace("network.", "network._orig_mod."): tensor for name, tensor in names.items()}
    for state in (wrapped, {f"module.{name}": tensor for name, tensor in names.items()}):
        conversion = convert_weights(state, "x")
        assert conversion.layout == expected.layout and conversion.state.keys() == expected.state.keys()


# Backbones


def drawn(names: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in names.items()}


def block(prefix: str = "blocks.0.", *, dim: int = 24, hidden: int = 96, key_bias: bool = True) -> dict[str, Any]:
    names = {"norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,)}
    names |= {"attn.qkv.weight": (3 * dim, dim), "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
    names |= {"attn.qkv.bias": (3 * dim,)} if key_bias else {}
    names |= {"ls1.gamma": (dim,), "ls2.gamma": (dim,)}
    names |= {"mlp.fc1.weight": (hidden, dim), "mlp.fc1.bias": (hidden,), "mlp.fc2.bias": (dim,)}
    names |= {"mlp.fc2.weight": (dim, hidden)}
    return {prefix + name: shape for name, shape in names.items()}


EMBEDDINGS = {"cls_token": (1, 1, 24), "patch_embed.proj.weight": (24, 3, 14, 14), "patch_embed.proj.bias": (24,)}
NORM = {"norm.weight": (24,), "norm.bias": (24,)}


def test_dinov2s_release_has_its_class_position_in_the_class_token():
    state = drawn(
        {
            **EMBEDDINGS,
            "register_tokens": (1, 4, 24),
            "mask_token": (1, 24),
            "pos_embed": (1, 17, 24),
            **block(),
            **NORM,
        }
    )
    conversion = convert_weights(state, "dinov2_vits14_reg4_pretrain.pth")
    converted = conversion.state
    assert conversion.layout.backbone_only
    needed = {name for name in Names(DEPTH=1).shapes() if name.startswith(VIT)}
    assert converted.keys() == needed
    assert torch.equal(converted[VIT + "cls_token"], state["cls_token"] + state["pos_embed"][:, :1])
    assert torch.equal(converted[VIT + "pos_embed"], state["pos_embed"][:, 1:])
    assert torch.equal(converted[VIT + "reg_token"], state["register_tokens"])


@pytest.mark.parametrize("entries", [16, 1, 12, 13])  # of a square without a class position, or of no square
def test_tables_without_a_class_position_stay(entries: int):
    state = drawn({**EMBEDDINGS, "pos_embed": (1, entries, 24), **block(), **NORM})
    converted = convert_weights(state, "timm.safetensors").state
    assert torch.equal(converted[VIT + "pos_embed"], state["pos_embed"])
    assert torch.equal(converted[VIT + "cls_token"], state["cls_token"])
    assert converted[VIT + "reg_token"].shape == (1, 0, 24)  # so it is said that the model has registers


def test_gated_networks_of_the_release_are_packed_alike():
    names = {name.replace("fc1", "w12").replace("fc2", "w3"): shape for name, shape in block(hidden=64).items()}
    state = drawn({**EMBEDDINGS, "pos_embed": (1, 16, 24), **names, **NORM})
    converted = convert_weights(state, "dinov2_vitg14_pretrain.pth").state
    assert torch.equal(converted[VIT + "blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.w12.weight"])
    assert torch.equal(converted[VIT + "blocks.0.mlp.fc2.bias"], state["blocks.0.mlp.w3.bias"])


def test_dinov3s_release_has_no_bias_of_keys_whatever_stands_there():
    others = {"storage_tokens": (1, 4, 24), "mask_token": (1, 24), "rope_embed.periods": (3,)}
    others |= {"blocks.0.attn.qkv.bias_mask": (72,)}
    state = drawn({**EMBEDDINGS, **others, **block(), **NORM})
    state["blocks.0.attn.qkv.bias"][24:48] = torch.nan  # as the mask of a model that was not loaded
    converted = convert_weights(state, "dinov3_vits16_pretrain.pth").state
    assert converted.keys() == {name for name in Names(DEPTH=1, ROTARY=True).shapes() if name.startswith(VIT)}
    assert torch.equal(converted[VIT + "blocks.0.attn.q_bias"], state["blocks.0.attn.qkv.bias"][:24])
    assert torch.equal(converted[VIT + "blocks.0.attn.v_bias"], state["blocks.0.attn.qkv.bias"][48:])


def test_dinov3_whose_keys_have_a_bias_is_refused():
    names = {"embeddings.cls_token": (1, 1, 4), "embeddings.patch_embeddings.weight": (4, 3, 16, 16)}
    names |= {f"layer.0.attention.{part}_proj.weight": (4, 4) for part in "qkv"}
    names |= {f"layer.0.attention.{part}_proj.bias": (4,) for part in "qkv"}
    with pytest.raises(InputError, match="keys have a bias"):
        convert_weights(drawn({**names, "layer.0.layer_scale1.lambda1": (4,)}), "model.safetensors")


def test_a_converted_backbone_is_known_again():
    state = drawn({**EMBEDDINGS, "pos_embed": (1, 16, 24), **block(), **NORM})
    converted = convert_weights(state, "timm.safetensors").state
    again = convert_weights(converted, "ours.safetensors")
    assert again.layout.backbone_only and again.renamed == 0 and again.state.keys() == converted.keys()
