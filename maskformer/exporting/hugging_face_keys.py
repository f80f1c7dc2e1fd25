"""Which of Hugging Face's names for a model's numbers is which of our keys, and what has a single value on either side.

One table serves both directions: what is written into ``config.json`` and what is read from it.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from maskformer.structures import InputError

LEVELS = ["res2", "res3", "res4", "res5"]

Values = dict[str, Any]
Names = dict[str, tuple[str, Any]]  # Hugging Face's name -> our key, and what it is there where the file does not say
# What all models there have,
_OURS = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": LEVELS,
    "INPUT.FORMAT": "RGB",
}
# all MaskFormers,
OURS_1 = {
    **_OURS,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.PRE_NORM": False,
}
# and all Mask2Formers; and there what ours all have.
OURS_2 = {
    **_OURS,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
}
THEIRS_2 = {
    "activation_function": "relu",
    "encoder_feedforward_dim": 1024,
    "feature_strides": [4, 8, 16, 32],
    "common_stride": 4,
}
THEIR_RESNETS = {"hidden_act": "relu", "downsample_in_first_stage": False}
THEIR_SWINS = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_absolute_embeddings": False}

MASKFORMER: Names = {
    "fpn_feature_size": ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 256),
    "mask_feature_size": ("MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
    "no_object_weight": ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.1),
    "cross_entropy_weight": ("MODEL.MASK_FORMER.CLASS_WEIGHT", 1.0),
    "dice_weight": ("MODEL.MASK_FORMER.DICE_WEIGHT", 1.0),
    "mask_weight": ("MODEL.MASK_FORMER.MASK_WEIGHT", 20.0),
}
DETR: Names = {
    "d_model": ("MODEL.MASK_FORMER.HIDDEN_DIM", 256),
    "num_queries": ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100),
    "decoder_layers": ("MODEL.MASK_FORMER.DEC_LAYERS", 6),
    "decoder_attention_heads": ("MODEL.MASK_FORMER.NHEADS", 8),
    "decoder_ffn_dim": ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 2048),
    "dropout": ("MODEL.MASK_FORMER.DROPOUT", 0.1),
}
MASK2FORMER: Names = {
    "feature_size": ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 256),
    "mask_feature_size": ("MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
    "encoder_layers": ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 6),
    "hidden_dim": ("MODEL.MASK_FORMER.HIDDEN_DIM", 256),
    "num_queries": ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100),
    "decoder_layers": ("MODEL.MASK_FORMER.DEC_LAYERS", 10),
    "num_attention_heads": ("MODEL.MASK_FORMER.NHEADS", 8),
    "dim_feedforward": ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 2048),
    "dropout": ("MODEL.MASK_FORMER.DROPOUT", 0.0),
    "pre_norm": ("MODEL.MASK_FORMER.PRE_NORM", False),
    "enforce_input_projection": ("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", False),
    "use_auxiliary_loss": ("MODEL.MASK_FORMER.DEEP_SUPERVISION", True),
    "no_object_weight": ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.1),
    "class_weight": ("MODEL.MASK_FORMER.CLASS_WEIGHT", 2.0),
    "mask_weight": ("MODEL.MASK_FORMER.MASK_WEIGHT", 5.0),
    "dice_weight": ("MODEL.MASK_FORMER.DICE_WEIGHT", 5.0),
    "train_num_points": ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 12544),
    "oversample_ratio": ("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 3.0),
    "importance_sample_ratio": ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", 0.75),
}
EOMT: Names = {
    "image_size": ("MODEL.EOMT.IMAGE_SIZE", 640),
    "patch_size": ("MODEL.EOMT.PATCH_SIZE", 16),
    "hidden_size": ("MODEL.EOMT.EMBED_DIM", 1024),
    "num_hidden_layers": ("MODEL.EOMT.DEPTH", 24),
    "num_attention_heads": ("MODEL.EOMT.NUM_HEADS", 16),
    "num_register_tokens": ("MODEL.EOMT.NUM_REGISTERS", 4),
    "num_blocks": ("MODEL.EOMT.NUM_BLOCKS", 4),
    "num_queries": ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 200),
    **{
        name: MASK2FORMER[name]
        for name in (
            "no_object_weight",
            "class_weight",
            "mask_weight",
            "dice_weight",
            "train_num_points",
            "oversample_ratio",
            "importance_sample_ratio",
        )
    },
}
SWIN: Names = {
    "image_size": ("MODEL.SWIN.PRETRAIN_IMG_SIZE", 224),
    "patch_size": ("MODEL.SWIN.PATCH_SIZE", 4),
    "embed_dim": ("MODEL.SWIN.EMBED_DIM", 96),
    "depths": ("MODEL.SWIN.DEPTHS", [2, 2, 6, 2]),
    "num_heads": ("MODEL.SWIN.NUM_HEADS", [3, 6, 12, 24]),
    "window_size": ("MODEL.SWIN.WINDOW_SIZE", 7),
    "mlp_ratio": ("MODEL.SWIN.MLP_RATIO", 4.0),
    "qkv_bias": ("MODEL.SWIN.QKV_BIAS", True),
    "drop_path_rate": ("MODEL.SWIN.DROP_PATH_RATE", 0.1),
    "hidden_dropout_prob": ("MODEL.SWIN.DROP_RATE", 0.0),
    "attention_probs_dropout_prob": ("MODEL.SWIN.ATTN_DROP_RATE", 0.0),
}


def name_model(cfg: CfgNode) -> str:
    """What a model is to Hugging Face: "EoMT", "Mask2Former", or else "MaskFormer"."""
    if cfg.MODEL.META_ARCHITECTURE == "EoMT":
        return "EoMT"
    is_second = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME == "MultiScaleMaskedTransformerDecoder"
    return "Mask2Former" if is_second else "MaskFormer"


def describe(cfg: CfgNode, names: Names) -> Values:
    """The values of a table, by Hugging Face's names."""
    return {name: _value(cfg, key) for name, (key, _) in names.items()}


def read(content: Values, names: Names) -> Values:
    """The values of a table, by our keys."""
    return {key: content.get(name, default) for name, (key, default) in names.items()}


def require(cfg: CfgNode, values: Values) -> None:
    """Refuse what no model there has."""
    for key, needed in values.items():
        value = _value(cfg, key)
        if value != needed:
            raise InputError(
                f"{key} is {value!r}, but Hugging Face's {name_model(cfg)} has only {needed!r}: such a model stays "
                "here (--to detectron2)."
            )


def check(content: Values, needed: Values, file: str) -> None:
    """Refuse what no model here has."""
    for name, value in needed.items():
        if content.get(name, value) != value:
            raise InputError(f"{file} says {name} {content[name]!r}; models here have only {value!r}.")


def _value(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return list(value) if isinstance(value, tuple) else value
