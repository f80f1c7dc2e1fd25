"""The description of a model that Hugging Face's ``from_pretrained`` reads beside its weights, from a configuration."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from maskformer.structures import Classes, InputError

# DEPTH -> blocks a stage
_RESNETS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
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
