"""Which keys have no effect beside others: a table.

They are keys of Detectron2's detectors, of its DeepLab heads, and of parts that were not chosen; they are compared with
their defaults, for a key that a file sets to its default cannot be told from one that it does not set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from detectron2.config import CfgNode

from maskformer.structures import InputError

from .values import BY_SCHEDULE, DEFORMABLE, MASKED, STANDARD, TIMM, at

_OF_POINTS = """MODEL.MASK_FORMER.TRAIN_NUM_POINTS MODEL.MASK_FORMER.OVERSAMPLE_RATIO
        MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO"""
_OF_RES5 = ("BasePixelDecoder", "TransformerEncoderPixelDecoder")  # pixel decoders of the first generation
_RESNETS = ("build_resnet_backbone", "build_resnet_fpn_backbone", "build_resnet_deeplab_backbone")
# With one of these values of a key, nothing reads others (or those under them); in our architectures alone.
_UNREAD_WITH: list[tuple[str, tuple[Any, ...], str]] = [
    (
        "MODEL.META_ARCHITECTURE",
        ("EoMT",),
        f"""MODEL.BACKBONE MODEL.RESNETS MODEL.SWIN MODEL.FPN MODEL.SEM_SEG_HEAD.NAME MODEL.SEM_SEG_HEAD.IN_FEATURES
        MODEL.SEM_SEG_HEAD.CONVS_DIM MODEL.SEM_SEG_HEAD.MASK_DIM MODEL.SEM_SEG_HEAD.NORM
        MODEL.SEM_SEG_HEAD.COMMON_STRIDE MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
        MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS {DEFORMABLE}_IN_FEATURES MODEL.SEM_SEG_HEAD.LOSS_WEIGHT
        MODEL.MASK_FORMER.DEEP_SUPERVISION MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME MODEL.MASK_FORMER.NHEADS
        MODEL.MASK_FORMER.DROPOUT MODEL.MASK_FORMER.DIM_FEEDFORWARD MODEL.MASK_FORMER.ENC_LAYERS
        MODEL.MASK_FORMER.DEC_LAYERS MODEL.MASK_FORMER.PRE_NORM MODEL.MASK_FORMER.HIDDEN_DIM
        MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ""",
    ),
    ("MODEL.META_ARCHITECTURE", ("MaskFormer", "SemanticSegmentor"), "MODEL.EOMT"),
    (
        "MODEL.META_ARCHITECTURE",
        ("SemanticSegmentor",),
        f"""MODEL.MASK_FORMER.NO_OBJECT_WEIGHT MODEL.MASK_FORMER.CLASS_WEIGHT MODEL.MASK_FORMER.DICE_WEIGHT
        MODEL.MASK_FORMER.MASK_WEIGHT MODEL.MASK_FORMER.MASK_LOSS {_OF_POINTS}
        MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME MODEL.MASK_FORMER.SIZE_DIVISIBILITY
        MODEL.MASK_FORMER.TEST.SEMANTIC_ON MODEL.MASK_FORMER.TEST.PANOPTIC_ON
        MODEL.MASK_FORMER.TEST.INSTANCE_ON MODEL.MASK_FORMER.TEST.SEM_SEG_LABELS
        MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD
        MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE""",
    ),
    ("MODEL.SEM_SEG_HEAD.NAME", ("MaskFormerHead",), "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"),
    (
        "MODEL.SEM_SEG_HEAD.NAME",
        ("MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"),
        """MODEL.SEM_SEG_HEAD.LOSS_TYPE MODEL.SEM_SEG_HEAD.PROJECT_FEATURES MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS
        MODEL.SEM_SEG_HEAD.ASPP_CHANNELS MODEL.SEM_SEG_HEAD.ASPP_DILATIONS MODEL.SEM_SEG_HEAD.ASPP_DROPOUT
        MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV""",
    ),
    ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", ("BasePixelDecoder",), "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS"),
    ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", _OF_RES5, f"{DEFORMABLE}_IN_FEATURES"),
    ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", (MASKED,), "MODEL.MASK_FORMER.ENC_LAYERS"),
    ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", (0,), "MODEL.MASK_FORMER.OVERSAMPLE_RATIO"),
    ("MODEL.BACKBONE.NAME", ("D2SwinTransformer",), "MODEL.RESNETS MODEL.FPN MODEL.TIMM"),
    ("MODEL.BACKBONE.NAME", (TIMM,), "MODEL.RESNETS MODEL.FPN MODEL.SWIN"),
    ("MODEL.BACKBONE.NAME", _RESNETS, "MODEL.SWIN MODEL.TIMM"),
    ("MODEL.BACKBONE.NAME", ("build_resnet_backbone", "build_resnet_deeplab_backbone"), "MODEL.FPN"),
    (
        "MODEL.BACKBONE.NAME",
        ("build_resnet_backbone", "build_resnet_fpn_backbone"),
        "MODEL.RESNETS.RES4_DILATION MODEL.RESNETS.RES5_MULTI_GRID MODEL.RESNETS.STEM_TYPE",
    ),
    (
        "DATALOADER.SAMPLER_TRAIN",
        ("TrainingSampler", "RandomSubsetTrainingSampler"),  # which count no categories
        "DATALOADER.REPEAT_THRESHOLD DATALOADER.REPEAT_SQRT",
    ),
    ("SOLVER.OPTIMIZER", ("ADAMW",), "SOLVER.MOMENTUM SOLVER.NESTEROV"),
    ("SOLVER.LR_SCALING", ("none",), "SOLVER.LR_REFERENCE_BATCH"),
    ("SOLVER.LAYER_DECAY", (1.0,), "SOLVER.LAYER_DECAY_SPARED"),
    ("MODEL.EOMT.MASKED_ATTENTION", (False,), "MODEL.EOMT.ANNEALING_STARTS MODEL.EOMT.ANNEALING_ENDS"),
    *(
        (
            "SOLVER.LR_SCHEDULER_NAME",
            (name,),
            " ".join(f"SOLVER.{key}" for key in sorted(set().union(*BY_SCHEDULE.values()) - read)),
        )
        for name, read in BY_SCHEDULE.items()
    ),
]
# The same where it takes more than one value to tell.
_UNREAD_WHERE: list[tuple[str, Callable[[CfgNode], bool], str]] = [
    (
        "with MaskFormer",
        lambda _: True,
        """SOLVER.BIAS_LR_FACTOR DATASETS.PROPOSAL_FILES_TRAIN DATASETS.PROPOSAL_FILES_TEST
        DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
        DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST TEST.KEYPOINT_OKS_SIGMAS GLOBAL.HACK MODEL.LOAD_PROPOSALS
        MODEL.KEYPOINT_ON MODEL.PROPOSAL_GENERATOR MODEL.ANCHOR_GENERATOR MODEL.RPN MODEL.ROI_HEADS
        MODEL.ROI_BOX_HEAD MODEL.ROI_BOX_CASCADE_HEAD MODEL.ROI_MASK_HEAD MODEL.ROI_KEYPOINT_HEAD
        MODEL.PANOPTIC_FPN MODEL.RETINANET VIS_PERIOD""",
    ),
    (
        "where no stage of MODEL.RESNETS.DEFORM_ON_PER_STAGE is True",
        lambda cfg: not any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE),
        "MODEL.RESNETS.DEFORM_MODULATED MODEL.RESNETS.DEFORM_NUM_GROUPS",
    ),
    (
        "without batch norm in MODEL.RESNETS.NORM or MODEL.SEM_SEG_HEAD.NORM",
        lambda cfg: cfg.MODEL.BACKBONE.NAME in (*_RESNETS, "D2SwinTransformer") and not _has_batch_norm(cfg),
        "TEST.PRECISE_BN.ENABLED",
    ),
    (
        "with an INPUT.DATASET_MAPPER_NAME that does not end in _lsj",
        lambda cfg: not cfg.INPUT.DATASET_MAPPER_NAME.endswith("_lsj"),
        "INPUT.IMAGE_SIZE INPUT.MIN_SCALE INPUT.MAX_SCALE",
    ),
    (
        "with an INPUT.DATASET_MAPPER_NAME that ends in _lsj",
        lambda cfg: cfg.INPUT.DATASET_MAPPER_NAME.endswith("_lsj"),
        """INPUT.MIN_SIZE_TRAIN INPUT.MAX_SIZE_TRAIN INPUT.MIN_SIZE_TRAIN_SAMPLING INPUT.CROP
        INPUT.SIZE_DIVISIBILITY""",
    ),
    (
        "where masks are compared at every pixel, as MODEL.MASK_FORMER.MASK_LOSS and TRANSFORMER_DECODER_NAME have it",
        lambda cfg: _compares_pixels(cfg.MODEL),
        _OF_POINTS,
    ),
    (
        "in a MaskFormerHead, unless MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is MSDeformAttnPixelDecoder",
        lambda cfg: (
            cfg.MODEL.SEM_SEG_HEAD.NAME == "MaskFormerHead" and cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME in _OF_RES5
        ),
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
    ),
]
# What the released files set beside a choice that does not read it; they load unchanged.
_RELEASED: dict[str, Any] = {
    "MODEL.RESNETS.STEM_TYPE": "basic",
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",  # of Cityscapes, beside Swin
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
}


def check_unread(cfg: CfgNode, defaults: CfgNode, keys_set: Collection[str]) -> None:
    """Refuse keys that are set and have no effect.

    Args:
        cfg: the whole config.
        defaults: with all keys at their defaults.
        keys_set: those that the user set here. One that a base brings is read by what the base chooses, and who chooses
            otherwise need not take it back.

    Raises:
        InputError: names the key, the value seen, its default, and what makes that nothing reads it.
    """
    if cfg.MODEL.META_ARCHITECTURE not in ("MaskFormer", "EoMT", "SemanticSegmentor"):
        return
    reasons = [(f"with {key} {at(cfg, key)}", keys) for key, values, keys in _UNREAD_WITH if at(cfg, key) in values]
    reasons += [(where, keys) for where, holds, keys in _UNREAD_WHERE if holds(cfg)]
    for where, keys in reasons:
        for leaf in (leaf for key in keys.split() for leaf in _leaves(cfg, key) if leaf in keys_set):
            value, default = at(cfg, leaf), at(defaults, leaf)
            if _with_lists(value) not in (_with_lists(default), _RELEASED.get(leaf)):
                raise InputError(
                    f"{leaf} is {value!r}, but has no effect {where}: take it away, or set it to its default, "
                    f"{default!r}."
                )


def _with_lists(value: Any) -> Any:
    """A value as a file has it that a run wrote: YAML has no tuples."""
    return [_with_lists(part) for part in value] if isinstance(value, (list, tuple)) else value


def _leaves(cfg: CfgNode, key: str) -> Iterator[str]:
    value = at(cfg, key)
    if not isinstance(value, CfgNode):
        yield key
        return
    for name in value:
        yield from _leaves(cfg, f"{key}.{name}")


def _has_batch_norm(cfg: CfgNode) -> bool:
    norms = {cfg.MODEL.SEM_SEG_HEAD.NORM, cfg.MODEL.RESNETS.NORM if cfg.MODEL.BACKBONE.NAME in _RESNETS else ""}
    return any("BN" in norm for norm in norms - {"FrozenBN"})


def _compares_pixels(model: CfgNode) -> bool:
    node, is_eomt = model.MASK_FORMER, model.META_ARCHITECTURE == "EoMT"
    return node.MASK_LOSS == "dense" or (
        not is_eomt and (node.MASK_LOSS, node.TRANSFORMER_DECODER_NAME) == ("auto", STANDARD)
    )
