"""The description of a model that Hugging Face's ``from_pretrained`` reads beside its weights: written and read."""

from __future__ import annotations

import json
import os
from typing import Any

from detectron2.config import CfgNode

from maskformer.structures import Classes, InputError

# DEPTH -> blocks a stage
_RESNETS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in 0..1
_MOST_BYTES = 10 * 2**20  # of a description
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def describe_model(cfg: CfgNode, classes: Classes | None) -> dict[str, Any]:
    """What goes into ``config.json``.

    Args:
        cfg: of the model.
        classes: the model's; None: not known, so they have the names that Hugging Face makes up.

    Raises:
        InputError: Hugging Face's MaskFormer has no such model.
    """
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    _require(
        cfg,
        {
            "MODEL.META_ARCHITECTURE": "MaskFormer",
            "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
            "MODEL.SEM_SEG_HEAD.NORM": "GN",
            "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
            "MODEL.MASK_FORMER.ENC_LAYERS": 0,
            "MODEL.MASK_FORMER.PRE_NORM": False,
            "INPUT.FORMAT": "RGB",
        },
    )
    backbones = {"build_resnet_backbone": _describe_resnet, "D2SwinTransformer": _describe_swin}
    name = cfg.MODEL.BACKBONE.NAME
    if name not in backbones:
        raise InputError(f"MODEL.BACKBONE.NAME is {name!r}; Hugging Face's MaskFormer has only {', '.join(backbones)}.")
    if classes is None:
        names = {index: f"LABEL_{index}" for index in range(head.NUM_CLASSES)}
    else:  # names are keys there: of equal ones, the later get their number
        names = {i: f"{name} ({i})" if name in classes.names[:i] else name for i, name in enumerate(classes.names)}
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": backbones[name](cfg),
        "decoder_config": {
            "model_type": "detr",
            "d_model": node.HIDDEN_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "decoder_layers": node.DEC_LAYERS,
            "decoder_attention_heads": node.NHEADS,
            "encoder_attention_heads": node.NHEADS,
            "decoder_ffn_dim": node.DIM_FEEDFORWARD,
            **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), node.DROPOUT),
            "use_timm_backbone": False,
            # Never built; without it some versions ask the hub for their default.
            "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]},
        },
        "fpn_feature_size": head.CONVS_DIM,
        "mask_feature_size": head.MASK_DIM,
        "no_object_weight": node.NO_OBJECT_WEIGHT,
        "dice_weight": node.DICE_WEIGHT,
        "mask_weight": node.MASK_WEIGHT,
        "cross_entropy_weight": 1.0,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }


def describe_preprocessing(cfg: CfgNode) -> dict[str, Any]:
    """What goes into ``preprocessor_config.json``."""
    return {
        "image_processor_type": "MaskFormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        # Theirs stretches images to a multiple of it, where ours pads them: 0 leaves the pixels as they are.
        "size_divisor": 0,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
    }


def _require(cfg: CfgNode, values: dict[str, Any]) -> None:
    for key, needed in values.items():
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        if value != needed:
            raise InputError(
                f"{key} is {value!r}, but Hugging Face's MaskFormer has only {needed!r}: such a model stays here "
                "(--to detectron2)."
            )


def _describe_resnet(cfg: CfgNode) -> dict[str, Any]:
    node = cfg.MODEL.RESNETS
    width, is_basic = node.RES2_OUT_CHANNELS, node.DEPTH < 50
    if not is_basic:
        needed = {"STRIDE_IN_1X1": False, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": width // 4}
        _require(cfg, {f"MODEL.RESNETS.{key}": value for key, value in needed.items()})
    _require(cfg, {"MODEL.RESNETS.STEM_TYPE": "basic", "MODEL.RESNETS.RES5_DILATION": 1})
    return {
        "model_type": "resnet",
        "layer_type": "basic" if is_basic else "bottleneck",
        "depths": _RESNETS[node.DEPTH],
        "embedding_size": node.STEM_OUT_CHANNELS,
        "hidden_sizes": [width * 2**stage for stage in range(4)],
        "hidden_act": "relu",
        "out_features": _STAGES,
    }


def _describe_swin(cfg: CfgNode) -> dict[str, Any]:
    node = cfg.MODEL.SWIN
    _require(cfg, {"MODEL.SWIN.APE": False, "MODEL.SWIN.PATCH_NORM": True, "MODEL.SWIN.QK_SCALE": None})
    return {
        "model_type": "swin",
        "image_size": node.PRETRAIN_IMG_SIZE,
        "patch_size": node.PATCH_SIZE,
        "embed_dim": node.EMBED_DIM,
        "depths": list(node.DEPTHS),
        "num_heads": list(node.NUM_HEADS),
        "window_size": node.WINDOW_SIZE,
        "mlp_ratio": node.MLP_RATIO,
        "qkv_bias": node.QKV_BIAS,
        "drop_path_rate": node.DROP_PATH_RATE,
        "hidden_dropout_prob": node.DROP_RATE,
        "attention_probs_dropout_prob": node.ATTN_DROP_RATE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_absolute_embeddings": False,
        "out_features": _STAGES,
    }


def read_description(config_file: str, preprocessor_file: str) -> list[Any]:
    """What a model's ``config.json`` says, as configuration keys: the opposite of ``describe_model``.

    It gives semantic results: that file does not say which classes are things.

    Args:
        config_file: of a ``MaskFormerForInstanceSegmentation``.
        preprocessor_file: beside it; where it is missing, pictures are prepared as Hugging Face does by default.

    Returns:
        KEY VALUE KEY VALUE ...

    Raises:
        InputError: it is another model, or has a part that is not known here.
    """
    content = read_json(config_file)
    try:
        if content.get("model_type") != "maskformer":
            raise InputError(
                f"{config_file} describes a model of the type {content.get('model_type')!r}; expected 'maskformer'."
            )
        backbone, decoder = content["backbone_config"], content["decoder_config"]
        readers = {"resnet": _read_resnet, "swin": _read_swin, "maskformer-swin": _read_swin}
        if backbone.get("model_type") not in readers:
            raise InputError(
                f"{config_file} has a backbone of the type {backbone.get('model_type')!r}; expected "
                f"{' or '.join(readers)}."
            )
        keys = {
            "MODEL.META_ARCHITECTURE": "MaskFormer",
            **readers[backbone["model_type"]](backbone),
            "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
            "MODEL.SEM_SEG_HEAD.NORM": "GN",
            "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(content["id2label"]),
            "MODEL.SEM_SEG_HEAD.CONVS_DIM": content.get("fpn_feature_size", 256),
            "MODEL.SEM_SEG_HEAD.MASK_DIM": content.get("mask_feature_size", 256),
            "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
            "MODEL.MASK_FORMER.HIDDEN_DIM": decoder.get("d_model", 256),
            "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": decoder.get("num_queries", 100),
            "MODEL.MASK_FORMER.DEC_LAYERS": decoder.get("decoder_layers", 6),
            "MODEL.MASK_FORMER.NHEADS": decoder.get("decoder_attention_heads", 8),
            "MODEL.MASK_FORMER.DIM_FEEDFORWARD": decoder.get("decoder_ffn_dim", 2048),
            "MODEL.MASK_FORMER.DROPOUT": decoder.get("dropout", 0.1),
            "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": content.get("no_object_weight", 0.1),
            "MODEL.MASK_FORMER.DICE_WEIGHT": content.get("dice_weight", 1.0),
            "MODEL.MASK_FORMER.MASK_WEIGHT": content.get("mask_weight", 20.0),
            **_read_preprocessing(read_json(preprocessor_file) if os.path.isfile(preprocessor_file) else {}),
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{config_file} is no description of a MaskFormer: {error!r} is missing or wrong.") from error
    return [part for key, value in keys.items() for part in (key, value)]


def class_names_of(config_file: str) -> list[str]:
    """The names of the classes in a ``config.json``, by their number."""
    labels = {int(index): str(name) for index, name in read_json(config_file)["id2label"].items()}
    return [labels[index] for index in sorted(labels)]


def read_json(path: str) -> dict[str, Any]:
    """One of the small files that describe a model.

    Raises:
        InputError: it is none.
    """
    if os.path.getsize(path) > _MOST_BYTES:
        raise InputError(f"{path} has more than {_MOST_BYTES} bytes; expected a model's description.")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def _read_resnet(backbone: dict[str, Any]) -> dict[str, Any]:
    is_basic = backbone.get("layer_type") == "basic"
    widths, blocks = backbone["hidden_sizes"], list(backbone["depths"])
    depths = [depth for depth, known in _RESNETS.items() if known == blocks and (depth < 50) == is_basic]
    if not depths:
        raise InputError(f"A ResNet has {blocks} blocks a stage; expected one of {list(_RESNETS.values())}.")
    keys = {"DEPTH": depths[0], "RES2_OUT_CHANNELS": widths[0], "STEM_OUT_CHANNELS": backbone["embedding_size"]}
    if not is_basic:
        keys |= {"STRIDE_IN_1X1": backbone.get("downsample_in_bottleneck", False), "WIDTH_PER_GROUP": widths[0] // 4}
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.STEM_TYPE": "basic",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        **{f"MODEL.RESNETS.{key}": value for key, value in keys.items()},
    }


def _read_swin(backbone: dict[str, Any]) -> dict[str, Any]:
    names = {
        "PRETRAIN_IMG_SIZE": ("image_size", 224),
        "PATCH_SIZE": ("patch_size", 4),
        "EMBED_DIM": ("embed_dim", 96),
        "DEPTHS": ("depths", [2, 2, 6, 2]),
        "NUM_HEADS": ("num_heads", [3, 6, 12, 24]),
        "WINDOW_SIZE": ("window_size", 7),
        "MLP_RATIO": ("mlp_ratio", 4.0),
        "QKV_BIAS": ("qkv_bias", True),
        "DROP_PATH_RATE": ("drop_path_rate", 0.1),
    }
    values = {f"MODEL.SWIN.{key}": backbone.get(name, default) for key, (name, default) in names.items()}
    return {
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        **values,
        "MODEL.SWIN.APE": False,
        "MODEL.SWIN.PATCH_NORM": True,
        "MODEL.SWIN.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }


def _read_preprocessing(content: dict[str, Any]) -> dict[str, Any]:
    size = content.get("size", {})
    if isinstance(size, int):  # of older versions
        size = {"shortest_edge": size, "longest_edge": content.get("max_size", 1333)}
    scale = 1.0 if content.get("do_rescale") is False else content.get("rescale_factor", 1 / 255)
    mean, std = content.get("image_mean", _MEAN), content.get("image_std", _STD)
    return {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": size.get("shortest_edge", 800),
        "INPUT.MAX_SIZE_TEST": size.get("longest_edge", 1333),
        "MODEL.PIXEL_MEAN": [value / scale for value in mean],
        "MODEL.PIXEL_STD": [value / scale for value in std],
    }
