"""The description of a model that Hugging Face's ``from_pretrained`` reads beside its weights: written and read."""

from __future__ import annotations

import json
import logging
import os
import re
from typing import Any

from detectron2.config import CfgNode

from maskformer.structures import Classes, InputError

from .hugging_face_eomt import describe_eomt, describe_eomt_sizes, read_eomt, read_eomt_sizes
from .hugging_face_keys import (
    DETR,
    LEVELS,
    MASK2FORMER,
    MASKFORMER,
    OURS_1,
    OURS_2,
    SWIN,
    THEIR_RESNETS,
    THEIR_SWINS,
    THEIRS_2,
    Values,
    check,
    describe,
    name_model,
    read,
    require,
)

logger = logging.getLogger(__name__)

# DEPTH -> blocks a stage
_RESNETS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in 0..1
_MOST_BYTES = 10 * 2**20  # of a description
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def describe_model(cfg: CfgNode, classes: Classes | None) -> Values:
    """What goes into ``config.json``.

    Args:
        cfg: of the model.
        classes: the model's; None: not known, so they have the names that Hugging Face makes up.

    Raises:
        InputError: Hugging Face has no such model.
    """
    descriptions = {"MaskFormer": _describe_maskformer, "Mask2Former": _describe_mask2former, "EoMT": describe_eomt}
    content = descriptions[name_model(cfg)](cfg)
    if classes is None:
        names = _made_up_names(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    else:  # names are keys there: of equal ones, the later get their number
        names = {i: f"{name} ({i})" if name in classes.names[:i] else name for i, name in enumerate(classes.names)}
    return {
        **content,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
    }


def _describe_backbone(cfg: CfgNode) -> Values:
    backbones = {"build_resnet_backbone": _describe_resnet, "D2SwinTransformer": _describe_swin}
    name = cfg.MODEL.BACKBONE.NAME
    if name not in backbones:
        raise InputError(f"MODEL.BACKBONE.NAME is {name!r}; Hugging Face's models have only {', '.join(backbones)}.")
    return backbones[name](cfg)


def _describe_maskformer(cfg: CfgNode) -> Values:
    require(cfg, OURS_1)
    decoder = describe(cfg, DETR)
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "decoder_config": {
            "model_type": "detr",
            **decoder,
            "encoder_attention_heads": decoder["decoder_attention_heads"],
            **dict.fromkeys(("attention_dropout", "activation_dropout"), decoder["dropout"]),
            "use_timm_backbone": False,
            # Never built; without it some versions ask the hub for their default.
            "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]},
        },
        **describe(cfg, MASKFORMER),
        "backbone_config": _describe_backbone(cfg),
    }


def _describe_mask2former(cfg: CfgNode) -> Values:
    require(cfg, OURS_2)
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        **describe(cfg, MASK2FORMER),
        **THEIRS_2,
        "backbone_config": _describe_backbone(cfg),
    }


def describe_preprocessing(cfg: CfgNode) -> Values:
    """What goes into ``preprocessor_config.json``."""
    # Theirs stretches images to a multiple of the divisor, where ours pads them: 0 leaves the pixels as they are.
    of_model = describe_eomt_sizes(cfg) if name_model(cfg) == "EoMT" else {"size_divisor": 0}
    return {
        "image_processor_type": f"{name_model(cfg).replace('EoMT', 'Eomt')}ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        **of_model,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
    }


def _describe_resnet(cfg: CfgNode) -> Values:
    node = cfg.MODEL.RESNETS
    width, is_basic = node.RES2_OUT_CHANNELS, node.DEPTH < 50
    if not is_basic:
        needed = {"STRIDE_IN_1X1": False, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": width // 4}
        require(cfg, {f"MODEL.RESNETS.{key}": value for key, value in needed.items()})
    require(cfg, {"MODEL.RESNETS.STEM_TYPE": "basic", "MODEL.RESNETS.RES5_DILATION": 1})
    return {
        "model_type": "resnet",
        "layer_type": "basic" if is_basic else "bottleneck",
        "depths": _RESNETS[node.DEPTH],
        "embedding_size": node.STEM_OUT_CHANNELS,
        "hidden_sizes": [width * 2**stage for stage in range(4)],
        "out_features": _STAGES,
        **THEIR_RESNETS,
    }


def _describe_swin(cfg: CfgNode) -> Values:
    require(cfg, {"MODEL.SWIN.APE": False, "MODEL.SWIN.PATCH_NORM": True, "MODEL.SWIN.QK_SCALE": None})
    return {"model_type": "swin", **describe(cfg, SWIN), "out_features": _STAGES, **THEIR_SWINS}


def read_description(config_file: str, preprocessor_file: str) -> list[Any]:
    """What a model's ``config.json`` says, as configuration keys: the opposite of ``describe_model``.

    It gives semantic results: that file does not say which classes are things.

    Args:
        config_file: of a ``MaskFormerForInstanceSegmentation``, or of a Mask2Former, an EoMT or an EoMT with DINOv3
            ``ForUniversalSegmentation``.
        preprocessor_file: beside it; where it is missing, pictures are prepared as Hugging Face does by default.

    Returns:
        KEY VALUE KEY VALUE ...

    Raises:
        InputError: it is another model, or has a part that is not known here.
    """
    content = read_json(config_file)
    models = {
        "maskformer": _read_maskformer,
        "mask2former": _read_mask2former,
        "eomt": read_eomt,
        "eomt_dinov3": read_eomt,
    }
    try:
        if content.get("model_type") not in models:
            raise InputError(
                f"{config_file} describes a model of the type {content.get('model_type')!r}; expected "
                f"{' or '.join(map(repr, models))}."
            )
        keys = {
            **models[content["model_type"]](content, config_file),
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(_labels(content)),
            **_read_preprocessing(preprocessor_file, is_eomt=content["model_type"].startswith("eomt")),
        }
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"{config_file} is no description of a MaskFormer, Mask2Former or EoMT: {error!r} is missing or wrong."
        ) from error
    return [part for key, value in keys.items() for part in (key, value)]


def class_names_of(config_file: str) -> list[str]:
    """The names of the classes in a ``config.json``, by their number."""
    return _labels(read_json(config_file))


def _labels(content: Values) -> list[str]:
    given = content.get("id2label") or _made_up_names(2)  # left out where they are these
    labels = {int(index): str(name) for index, name in given.items()}
    return [labels[index] for index in sorted(labels)]


def _made_up_names(number: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(number)}


def read_json(path: str) -> Values:
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


def _read_maskformer(content: Values, file: str) -> Values:
    decoder = read(content["decoder_config"], DETR)
    return {**OURS_1, **read(content, MASKFORMER), **decoder, **_read_backbone(content, file)}


def _read_mask2former(content: Values, file: str) -> Values:
    check(content, THEIRS_2, file)
    return {**OURS_2, **read(content, MASK2FORMER), **_read_backbone(content, file)}


def _read_backbone(content: Values, file: str) -> Values:
    backbone = content["backbone_config"]
    if backbone is None and content.get("use_timm_backbone"):  # as transformers 4 wrote it
        backbone = {"model_type": "timm_backbone", "backbone": content["backbone"]}
    readers = {
        "resnet": _read_resnet,
        "swin": _read_swin,
        "maskformer-swin": _read_swin,
        "timm_backbone": _read_timm,
    }
    if backbone.get("model_type") not in readers:
        raise InputError(
            f"{file} has a backbone of the type {backbone.get('model_type')!r}; expected {' or '.join(readers)}."
        )
    # FREEZE_AT is of training; Detectron2's default is 2.
    return {**readers[backbone["model_type"]](backbone, file), "MODEL.BACKBONE.FREEZE_AT": 0}


def _resnet_keys(**keys: Any) -> Values:
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.STEM_TYPE": "basic",
        "MODEL.RESNETS.OUT_FEATURES": LEVELS,
        **{f"MODEL.RESNETS.{key}": value for key, value in keys.items()},
    }


def _read_resnet(backbone: Values, file: str) -> Values:
    check(backbone, THEIR_RESNETS, file)
    is_basic = backbone.get("layer_type") == "basic"
    widths, blocks = backbone["hidden_sizes"], list(backbone["depths"])
    depths = [depth for depth, known in _RESNETS.items() if known == blocks and (depth < 50) == is_basic]
    if not depths:
        raise InputError(f"A ResNet has {blocks} blocks a stage; expected one of {list(_RESNETS.values())}.")
    keys = {"DEPTH": depths[0], "RES2_OUT_CHANNELS": widths[0], "STEM_OUT_CHANNELS": backbone["embedding_size"]}
    if not is_basic:
        keys |= {"STRIDE_IN_1X1": backbone.get("downsample_in_bottleneck", False), "WIDTH_PER_GROUP": widths[0] // 4}
    return _resnet_keys(**keys)


def _read_timm(backbone: Values, file: str) -> Values:
    name = backbone["backbone"]
    known = re.fullmatch(r"(?:tv_)?resnet(\d+)(?:\..*)?", name)
    if known is None or int(known[1]) not in _RESNETS:
        expected = ", ".join(f"resnet{depth}" for depth in _RESNETS)
        raise InputError(f"{file} has timm's {name!r} as backbone; expected one of {expected}.")
    depth = int(known[1])
    keys = {"RES2_OUT_CHANNELS": 64} if depth < 50 else {"RES2_OUT_CHANNELS": 256, "STRIDE_IN_1X1": False}
    return _resnet_keys(DEPTH=depth, **keys)


def _read_swin(backbone: Values, file: str) -> Values:
    check(backbone, THEIR_SWINS, file)
    return {
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        **read(backbone, SWIN),
        "MODEL.SWIN.APE": False,
        "MODEL.SWIN.PATCH_NORM": True,
        "MODEL.SWIN.OUT_FEATURES": LEVELS,
    }


def _read_preprocessing(file: str, *, is_eomt: bool) -> Values:
    content = read_json(file) if os.path.isfile(file) else {}
    size = content.get("size", {})
    if isinstance(size, int):  # of older versions
        size = {"shortest_edge": size, "longest_edge": content.get("max_size", 1333)}
    if "height" in size and "width" in size:
        logger.warning(
            "%s stretches pictures to %s x %s pixels; here they keep their shape, with the shorter side resized to "
            "INPUT.MIN_SIZE_TEST %s: if the model was trained on larger ones, set that key to their size.",
            file, size["height"], size["width"], min(size["height"], size["width"]),
        )  # fmt: skip
        size = {"shortest_edge": min(size["height"], size["width"])}
    scale = 1.0 if content.get("do_rescale") is False else content.get("rescale_factor", 1 / 255)
    mean, std = content.get("image_mean", _MEAN), content.get("image_std", _STD)
    return {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": size.get("shortest_edge", 800),
        "INPUT.MAX_SIZE_TEST": size.get("longest_edge", 1333),
        "MODEL.PIXEL_MEAN": [value / scale for value in mean],
        "MODEL.PIXEL_STD": [value / scale for value in std],
        **(read_eomt_sizes(content) if is_eomt else {}),
    }
