"""What ``config.json`` and ``preprocessor_config.json`` of Hugging Face's two EoMTs say: written and read."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode

from .hugging_face_keys import EOMT, Values, check, describe, read, require

logger = logging.getLogger(__name__)

_NO_LIMIT = 1_000_000  # pixels
_SIDE = 640  # of their preprocessor, where it says nothing
_THEIRS = {
    "hidden_act": "gelu",
    "num_channels": 3,
    **dict.fromkeys(("hidden_dropout_prob", "attention_dropout", "drop_path_rate"), 0.0),
}
_DINOV2 = {"layer_norm_eps": 1e-6, "mlp_ratio": 4}
_DINOV3_EPSILON = 1e-5
_DINOV3 = {
    **dict.fromkeys(("query_bias", "value_bias", "proj_bias", "mlp_bias"), True),
    **dict.fromkeys(("key_bias", "use_gated_mlp"), False),
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
}
# In training alone, coordinates of patches are scaled at random; a folder of theirs may say otherwise.
_DINOV3_TRAINING = {"pos_embed_rescale": 2.0, "pos_embed_shift": None, "pos_embed_jitter": None}


def describe_eomt(cfg: CfgNode) -> Values:
    """What goes into ``config.json``, without the classes.

    Raises:
        InputError: Hugging Face has no such EoMT.
    """
    is_dinov3 = cfg.MODEL.EOMT.ROTARY
    require(cfg, {"INPUT.FORMAT": "RGB", **({"MODEL.EOMT.SWIGLU": False} if is_dinov3 else {})})
    content = {
        "architectures": [f"Eomt{'Dinov3' if is_dinov3 else ''}ForUniversalSegmentation"],
        "model_type": "eomt_dinov3" if is_dinov3 else "eomt",
        **describe(cfg, EOMT),
        "num_upscale_blocks": _num_upscale_blocks(cfg.MODEL.EOMT.PATCH_SIZE),
        **_THEIRS,
    }
    if not is_dinov3:
        return {**content, "use_swiglu_ffn": cfg.MODEL.EOMT.SWIGLU, **_DINOV2}
    width = 4 * cfg.MODEL.EOMT.EMBED_DIM
    content |= {"intermediate_size": width, "layer_norm_eps": _DINOV3_EPSILON}
    return {**content, **_DINOV3, **_DINOV3_TRAINING}


def read_eomt(content: Values, file: str) -> Values:
    """Our keys for what a ``config.json`` says, but for the classes: the opposite of ``describe_eomt``.

    Raises:
        InputError: it has a part that is not known here.
    """
    is_dinov3 = content["model_type"] == "eomt_dinov3"
    numbers = read(content, EOMT)
    needed = {**_THEIRS, "num_upscale_blocks": _num_upscale_blocks(numbers["MODEL.EOMT.PATCH_SIZE"])}
    if is_dinov3:
        needed |= {**_DINOV3, "intermediate_size": 4 * numbers["MODEL.EOMT.EMBED_DIM"]}
        epsilon = content.get("layer_norm_eps")
        if epsilon != _DINOV3_EPSILON:
            logger.warning(
                "%s says layer_norm_eps %s, or leaves it out; here it is %s, which DINOv3 was trained with: logits are "
                "not quite those of transformers",
                file, epsilon, _DINOV3_EPSILON,
            )  # fmt: skip
    else:
        needed |= _DINOV2
        numbers["MODEL.EOMT.SWIGLU"] = content.get("use_swiglu_ffn", False)
    check(content, needed, file)
    thresholds = dict.fromkeys(("OBJECT_MASK_THRESHOLD", "OVERLAP_THRESHOLD"), 0.8)  # of panoptic results, as released
    thresholds = {f"MODEL.MASK_FORMER.TEST.{key}": value for key, value in thresholds.items()}
    return {"MODEL.META_ARCHITECTURE": "EoMT", "MODEL.EOMT.ROTARY": is_dinov3, **numbers, **thresholds}


def describe_eomt_sizes(cfg: CfgNode) -> Values:
    """What their preprocessor is to do with pictures: to cut windows along the long side, or to pad to a square."""
    cuts = bool(cfg.MODEL.MASK_FORMER.TEST.SLIDING_WINDOW)
    side = cfg.INPUT.MIN_SIZE_TEST
    if not cuts and side != cfg.INPUT.MAX_SIZE_TEST:
        side = cfg.MODEL.EOMT.IMAGE_SIZE
        logger.warning(
            "INPUT.MIN_SIZE_TEST is %d and MAX_SIZE_TEST %d, but there pictures are padded to a square: its side is "
            "written as %d, MODEL.EOMT.IMAGE_SIZE",
            cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, side,
        )  # fmt: skip
    return {
        "do_split_image": cuts,
        "do_pad": not cuts,
        "size": {"shortest_edge": side, "longest_edge": None if cuts else side},
    }


def read_eomt_sizes(content: Values) -> Values:
    """Our keys for the same."""
    size = content.get("size", {"shortest_edge": _SIDE, "longest_edge": _SIDE})
    side = size["shortest_edge"]
    longest = size.get("longest_edge") or (_NO_LIMIT if content.get("do_split_image") else side)
    sizes = {"INPUT.MIN_SIZE_TEST": side, "INPUT.MAX_SIZE_TEST": longest, "INPUT.ROUNDING_TEST": "even"}
    if not content.get("do_split_image"):
        return {**sizes, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": longest}
    window = {"SLIDING_WINDOW": (side, side), "SLIDING_WINDOW_OVERLAP": 0.0}
    return {**sizes, **{f"MODEL.MASK_FORMER.TEST.{key}": value for key, value in window.items()}}


def _num_upscale_blocks(patch_size: int) -> int:
    """Doublings from patches to a quarter of the image, of which there is one at least."""
    return max(1, patch_size.bit_length() - 3)
