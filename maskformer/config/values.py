"""What values of configuration keys are possible: a table. A value that is checked where it is read is not here."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from maskformer.structures import InputError, check_choice

_Check = Callable[[Any], bool]

# What is expected, the check of each number, and the keys; a key with several numbers is checked number by number.
_RANGES: list[tuple[str, _Check, str]] = [
    (
        "1 or more",
        lambda value: 1 <= value < math.inf,
        """SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD SOLVER.NUM_DECAYS SOLVER.ACCUMULATION_STEPS SOLVER.MAX_BAD_STEPS
        SOLVER.LR_REFERENCE_BATCH INPUT.MAX_SIZE_TRAIN INPUT.MAX_SIZE_TEST INPUT.IMAGE_SIZE INPUT.MAX_DRAWS
        TEST.DETECTIONS_PER_IMAGE TEST.PRECISE_BN.NUM_ITER
        MODEL.MASK_FORMER.TRAIN_NUM_POINTS MODEL.MASK_FORMER.OVERSAMPLE_RATIO
        MODEL.SEM_SEG_HEAD.NUM_CLASSES MODEL.SEM_SEG_HEAD.CONVS_DIM MODEL.SEM_SEG_HEAD.MASK_DIM
        MODEL.SEM_SEG_HEAD.COMMON_STRIDE MODEL.MASK_FORMER.NHEADS MODEL.MASK_FORMER.DIM_FEEDFORWARD
        MODEL.MASK_FORMER.DEC_LAYERS MODEL.MASK_FORMER.HIDDEN_DIM MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
        MODEL.SWIN.PRETRAIN_IMG_SIZE MODEL.SWIN.PATCH_SIZE MODEL.SWIN.EMBED_DIM MODEL.SWIN.DEPTHS MODEL.SWIN.NUM_HEADS
        MODEL.SWIN.WINDOW_SIZE MODEL.RESNETS.STEM_OUT_CHANNELS MODEL.RESNETS.RES2_OUT_CHANNELS
        MODEL.EOMT.IMAGE_SIZE MODEL.EOMT.PATCH_SIZE MODEL.EOMT.EMBED_DIM MODEL.EOMT.DEPTH MODEL.EOMT.NUM_HEADS
        MODEL.EOMT.NUM_BLOCKS MODEL.RESNETS.NUM_GROUPS MODEL.RESNETS.WIDTH_PER_GROUP MODEL.RESNETS.RES5_MULTI_GRID
        TEST.AUG.MIN_SIZES TEST.AUG.MAX_SIZE MODEL.MASK_FORMER.TEST.SLIDING_WINDOW""",
    ),
    (
        "0 or more",
        lambda value: 0 <= value < math.inf,
        """SOLVER.BASE_LR SOLVER.BASE_LR_END SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM SOLVER.WEIGHT_DECAY_EMBED
        SOLVER.BACKBONE_MULTIPLIER SOLVER.WARMUP_ITERS SOLVER.WARMUP_FACTOR SOLVER.GAMMA SOLVER.POLY_LR_POWER
        SOLVER.SAVE_RETRY_SECONDS SOLVER.REFERENCE_WORLD_SIZE SOLVER.STEPS TEST.EVAL_PERIOD LOG.PICTURES
        SOLVER.LAYER_DECAY_SPARED DATALOADER.NUM_WORKERS MODEL.EOMT.NUM_REGISTERS
        DATALOADER.REPEAT_THRESHOLD INPUT.MIN_SIZE_TRAIN INPUT.MIN_SIZE_TEST
        MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS
        MODEL.SEM_SEG_HEAD.LOSS_WEIGHT MODEL.MASK_FORMER.ENC_LAYERS MODEL.MASK_FORMER.NO_OBJECT_WEIGHT
        MODEL.MASK_FORMER.CLASS_WEIGHT MODEL.MASK_FORMER.DICE_WEIGHT MODEL.MASK_FORMER.MASK_WEIGHT""",
    ),
    (
        "more than 0",
        lambda value: value > 0,
        """SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE INPUT.CROP.SIZE MODEL.PIXEL_STD
        MODEL.SWIN.MLP_RATIO INPUT.CROP.SINGLE_CATEGORY_MAX_AREA""",
    ),
    ("more than 0 and at most 1", lambda value: 0 < value <= 1, "SOLVER.LAYER_DECAY"),
    (
        "0 to 1",
        lambda value: 0 <= value <= 1,
        """MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD
        MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO SOLVER.POLY_LR_CONSTANT_ENDING""",
    ),
    (
        "0 or more and below 1",
        lambda value: 0 <= value < 1,
        """MODEL.MASK_FORMER.DROPOUT MODEL.SWIN.DROP_RATE MODEL.SWIN.ATTN_DROP_RATE MODEL.SWIN.DROP_PATH_RATE
        MODEL.TIMM.DROP_PATH_RATE SOLVER.MOMENTUM SOLVER.EMA.DECAY MODEL.MASK_FORMER.TEST.SLIDING_WINDOW_OVERLAP""",
    ),
    ("0 to 255", lambda value: 0 <= value <= 255, "INPUT.PADDING_VALUE"),
    ("-1 (nothing, as 0) to 5", lambda value: -1 <= value <= 5, "MODEL.BACKBONE.FREEZE_AT"),
    ("at most 4000000000", lambda value: value <= 4e9, "SEED"),
]
# The keys under SOLVER that each schedule reads, and not all do.
_WARMUP = {"WARMUP_ITERS", "WARMUP_FACTOR", "WARMUP_METHOD"}
BY_SCHEDULE = {
    "TwoStageWarmupPolyLR": {"WARMUP_STAGES", "POLY_LR_POWER"},
    "WarmupPolyLR": {*_WARMUP, "POLY_LR_POWER", "POLY_LR_CONSTANT_ENDING"},
    "WarmupMultiStepLR": {*_WARMUP, "STEPS", "GAMMA", "RESCALE_INTERVAL"},
    "WarmupCosineLR": {*_WARMUP, "BASE_LR_END", "RESCALE_INTERVAL"},
    "WarmupStepWithFixedGammaLR": {*_WARMUP, "GAMMA", "NUM_DECAYS", "RESCALE_INTERVAL"},
}
# Names that Detectron2 takes without a look, or refuses in its own words.
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "SOLVER.LR_SCHEDULER_NAME": tuple(BY_SCHEDULE),
    "MODEL.RESNETS.NORM": _NORMS,
    "MODEL.SEM_SEG_HEAD.NORM": _NORMS,
    "MODEL.TIMM.NORM": ("", "FrozenBN", "SyncBN"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.ROUNDING_TEST": ("up", "even"),
    "SOLVER.OPTIMIZER": ("ADAMW", "SGD"),
    "SOLVER.LR_SCALING": ("none", "linear", "sqrt"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "value", "norm"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.AMP.PRECISION": ("auto", "float16", "bfloat16"),
    "MODEL.COMPILE": ("none", "default", "max-autotune"),
    "MODEL.PRECISION": ("float32", "bfloat16", "float16", "auto"),
    "MODEL.MASK_FORMER.MASK_LOSS": ("auto", "dense", "points"),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.STEM_TYPE": ("basic", "deeplab"),
    "MODEL.RESNETS.RES4_DILATION": (1, 2),
    "MODEL.RESNETS.RES5_DILATION": (1, 2, 4),
}
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
DEFORMABLE = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER"
STANDARD, MASKED = "StandardTransformerDecoder", "MultiScaleMaskedTransformerDecoder"
_MULTI_SCALE = "MSDeformAttnPixelDecoder"
TIMM = "build_timm_backbone"
_WRITERS = {"tensorboard", "wandb", "mlflow"}
# Whole values: key, what is expected, and the check of the value in its configuration.
_WHOLE: list[tuple[str, str, Callable[[Any, CfgNode], bool]]] = [
    ("OUTPUT_DIR", "the path of a folder", lambda value, _: bool(value)),
    ("INPUT.MIN_SIZE_TRAIN", "one or more lengths in pixels", lambda value, _: len(value) > 0),
    ("TEST.AUG.MIN_SIZES", "one or more lengths in pixels", lambda value, _: len(value) > 0),
    (
        "MODEL.MASK_FORMER.TEST.SLIDING_WINDOW",
        "(height, width) in pixels, or () for none",
        lambda value, _: len(value) in (0, 2),
    ),
    (
        f"{DEFORMABLE}_N_POINTS",
        "4, which MSDeformAttnPixelDecoder always takes: nothing reads the key",
        lambda value, _: value == 4,
    ),
    (
        f"{DEFORMABLE}_N_HEADS",
        "8 or MODEL.MASK_FORMER.NHEADS, which MSDeformAttnPixelDecoder has: nothing reads the key",
        lambda value, cfg: value in (8, cfg.MODEL.MASK_FORMER.NHEADS),
    ),
    (
        "MODEL.MASK_FORMER.HIDDEN_DIM",
        "a multiple of MODEL.MASK_FORMER.NHEADS and of 4, sine and cosine of row and column",
        lambda value, cfg: value % math.lcm(cfg.MODEL.MASK_FORMER.NHEADS, 4) == 0,
    ),
    (
        "MODEL.SEM_SEG_HEAD.CONVS_DIM",
        "a multiple of MODEL.MASK_FORMER.NHEADS and of 4, sine and cosine of row and column, with this "
        "PIXEL_DECODER_NAME",
        lambda value, cfg: (
            cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME not in ("TransformerEncoderPixelDecoder", _MULTI_SCALE)
            or value % math.lcm(cfg.MODEL.MASK_FORMER.NHEADS, 4) == 0
        ),
    ),
    (
        "MODEL.SEM_SEG_HEAD.CONVS_DIM",
        f"a multiple of 32, the groups of {_MULTI_SCALE} and of NORM GN",
        lambda value, cfg: (
            value % 32 == 0
            or (cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME != _MULTI_SCALE and cfg.MODEL.SEM_SEG_HEAD.NORM != "GN")
        ),
    ),
    (
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
        f"1 or more with PIXEL_DECODER_NAME {_MULTI_SCALE}",
        lambda value, cfg: value > 0 or cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME != _MULTI_SCALE,
    ),
    (
        "MODEL.MASK_FORMER.DEC_LAYERS",
        f"2 or more with {MASKED}, which has one layer less",
        lambda value, cfg: value > 1 or cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME != MASKED,
    ),
    (
        "MODEL.EOMT.PATCH_SIZE",
        "a power of 2, 8 or more, for masks have stride 4",
        lambda value, _: value >= 8 and value & (value - 1) == 0,
    ),
    (
        "MODEL.EOMT.IMAGE_SIZE",
        "a multiple of MODEL.EOMT.PATCH_SIZE",
        lambda value, cfg: value % cfg.MODEL.EOMT.PATCH_SIZE == 0,
    ),
    (
        "MODEL.EOMT.EMBED_DIM",
        "a multiple of MODEL.EOMT.NUM_HEADS, and with MODEL.EOMT.ROTARY of four times that",
        lambda value, cfg: value % (cfg.MODEL.EOMT.NUM_HEADS * (4 if cfg.MODEL.EOMT.ROTARY else 1)) == 0,
    ),
    (
        "MODEL.MASK_FORMER.SIZE_DIVISIBILITY",
        "a multiple of MODEL.EOMT.PATCH_SIZE, or -1, with META_ARCHITECTURE EoMT: images are divided into patches",
        lambda value, cfg: (
            cfg.MODEL.META_ARCHITECTURE != "EoMT" or value < 0 or (value > 0 and value % cfg.MODEL.EOMT.PATCH_SIZE == 0)
        ),
    ),
    (
        "MODEL.EOMT.DELTA_BASE",
        "'' unless MODEL.EOMT.ROTARY is True: released differences are DINOv3's",
        lambda value, cfg: not value or cfg.MODEL.EOMT.ROTARY,
    ),
    ("MODEL.EOMT.NUM_BLOCKS", "at most MODEL.EOMT.DEPTH", lambda value, cfg: value <= cfg.MODEL.EOMT.DEPTH),
    ("INPUT.CROP.SIZE", "height and width", lambda value, _: len(value) == 2),
    (
        "INPUT.CROP.SIZE",
        "fractions up to 1, or INPUT.CROP.TYPE absolute",
        lambda value, cfg: (
            not (cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE.startswith("relative")) or max(value) <= 1
        ),
    ),
    (
        "MODEL.PIXEL_MEAN",
        "a number for each channel of the images, three as they are read",
        lambda value, _: len(value) > 0,
    ),
    (
        "MODEL.PIXEL_STD",
        "as many numbers as MODEL.PIXEL_MEAN",
        lambda value, cfg: len(value) == len(cfg.MODEL.PIXEL_MEAN),
    ),
    (
        "MODEL.BACKBONE.NAME",
        "another: META_ARCHITECTURE EoMT has its own vision transformer (MODEL.EOMT), MaskFormer takes any backbone",
        lambda value, cfg: value != TIMM or cfg.MODEL.META_ARCHITECTURE != "EoMT",
    ),
    (
        "MODEL.TIMM.NAME",
        "the name of one of timm's models with MODEL.BACKBONE.NAME build_timm_backbone",
        lambda value, cfg: bool(value) or cfg.MODEL.BACKBONE.NAME != TIMM,
    ),
    (
        "SOLVER.BASE_LR_END",
        "at most SOLVER.BASE_LR",
        lambda value, cfg: value <= cfg.SOLVER.BASE_LR or cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupCosineLR",
    ),
    (
        "SOLVER.WARMUP_STAGES",
        "two numbers of iterations, 0 or more",
        lambda value, _: len(value) == 2 and _are_iterations(value),
    ),
    (
        "SOLVER.WARMUP_STAGES",
        "a sum below SOLVER.MAX_ITER with LR_SCHEDULER_NAME TwoStageWarmupPolyLR",
        lambda value, cfg: sum(value) < cfg.SOLVER.MAX_ITER or cfg.SOLVER.LR_SCHEDULER_NAME != "TwoStageWarmupPolyLR",
    ),
    *(
        (
            key,
            "[], or an iteration for each of MODEL.EOMT.NUM_BLOCKS blocks",
            lambda value, cfg: len(value) in (0, cfg.MODEL.EOMT.NUM_BLOCKS) and _are_iterations(value),
        )
        for key in ("MODEL.EOMT.ANNEALING_STARTS", "MODEL.EOMT.ANNEALING_ENDS")
    ),
    (
        "MODEL.EOMT.ANNEALING_ENDS",
        "one iteration after each of MODEL.EOMT.ANNEALING_STARTS",
        lambda value, cfg: (
            len(value) == len(cfg.MODEL.EOMT.ANNEALING_STARTS)
            and all(start < end for start, end in zip(cfg.MODEL.EOMT.ANNEALING_STARTS, value))
        ),
    ),
    (
        "SOLVER.WEIGHT_DECAY_BIAS",
        "None or SOLVER.WEIGHT_DECAY, for biases decay as other weights do",
        lambda value, cfg: value in (None, cfg.SOLVER.WEIGHT_DECAY),
    ),
    (
        "SOLVER.NESTEROV",
        "False where SOLVER.MOMENTUM is 0",
        lambda value, cfg: not value or cfg.SOLVER.MOMENTUM > 0,
    ),
    (
        "SOLVER.REFERENCE_WORLD_SIZE",
        "0, or a divisor of SOLVER.IMS_PER_BATCH",
        lambda value, cfg: value == 0 or cfg.SOLVER.IMS_PER_BATCH % value == 0,
    ),
    (
        "TEST.EXPECTED_RESULTS",
        "rows of [task, metric, score, tolerance], such as ['sem_seg', 'mIoU', 44.5, 0.2]",
        lambda value, _: all(_is_expected_result(row) for row in value),
    ),
    (
        "LOG.WRITERS",
        "a list of some of tensorboard, wandb and mlflow, each once",
        lambda value, _: set(value) <= _WRITERS and len(set(value)) == len(value),
    ),
    *(
        (
            key,
            f"{nothing} where DATASETS.TEST is empty, for nothing is evaluated",
            lambda value, cfg: not value or bool(cfg.DATASETS.TEST),
        )
        for key, nothing in (("TEST.EXPECTED_RESULTS", "[]"), ("TEST.BEST_METRIC", "''"))
    ),
]


def check_values(cfg: CfgNode) -> None:
    """Refuse values that are impossible.

    Args:
        cfg: the whole config.

    Raises:
        InputError: names the key, the value seen, and what is expected.
    """
    for expected, check, keys in _RANGES:
        for key in keys.split():
            if not all(check(number) for number in _numbers(at(cfg, key))):
                raise InputError(f"{key} is {at(cfg, key)}, expected {expected}.")
    registered = {key: tuple(name for name, _ in registry) for key, registry in _REGISTRIES.items()}
    for key, choices in {**_CHOICES, **registered}.items():
        check_choice(at(cfg, key), choices, key)
    for key, expected, check_whole in _WHOLE:
        if not check_whole(at(cfg, key), cfg):
            raise InputError(f"{key} is {at(cfg, key)!r}, expected {expected}.")


def at(cfg: CfgNode, key: str) -> Any:
    """The value of a key such as ``MODEL.DEVICE``."""
    return functools.reduce(CfgNode.__getitem__, key.split("."), cfg)


def _numbers(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _are_iterations(values: Any) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


def _is_expected_result(row: Any) -> bool:
    return (
        isinstance(row, (list, tuple))
        and len(row) == 4
        and all(isinstance(name, str) for name in row[:2])
        and all(isinstance(number, (int, float)) for number in row[2:])
    )
