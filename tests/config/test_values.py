"""A key is obeyed or refused: impossible values, and keys without effect, are named before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from released import FIRST, SECOND

from maskformer.config import default_config, load_config
from maskformer.config.unread import _RELEASED, _UNREAD_WHERE, _UNREAD_WITH
from maskformer.config.values import _CHOICES, _RANGES, _WHOLE, at
from maskformer.structures import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
R50 = "ade20k-150/maskformer_R50_bs16_160k.yaml"
SWIN = "ade20k-150/swin/maskformer_swin_tiny_bs16_160k.yaml"
PER_PIXEL = "ade20k-150/per_pixel_baseline_R50_bs16_160k.yaml"
MASK2FORMER = "mask2former/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
DEFORMABLE = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER"
EOMT = "eomt/coco_panoptic_small_640.yaml"
COCO = "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml"


def load(recipe: str, *options: Any) -> CfgNode:
    return load_config(str(REPOSITORY / "configs" / recipe), [str(option) for option in options])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", -5),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.BASE_LR", -0.1),
        ("SOLVER.BASE_LR", "1e999"),
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("SOLVER.WARMUP_ITERS", -1),
        ("SOLVER.WEIGHT_DECAY", -1e-4),
        ("SOLVER.BACKBONE_MULTIPLIER", -1.0),
        ("SOLVER.LAYER_DECAY", 0.0),
        ("SOLVER.LAYER_DECAY", 1.25),
        ("SOLVER.LAYER_DECAY_SPARED", -1),
        ("SOLVER.WARMUP_STAGES", "(500,)"),
        ("SOLVER.WARMUP_STAGES", "(500, -1)"),
        ("SOLVER.WARMUP_STAGES", "('a', 0.5)"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -0.01),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0),
        ("SOLVER.WARMUP_METHOD", "cosine"),
        ("SOLVER.AMP.PRECISION", "half"),
        ("TEST.EVAL_PERIOD", -1),
        ("TEST.EXPECTED_RESULTS", "[['mIoU', 44.5]]"),
        ("DATALOADER.NUM_WORKERS", -1),
        ("INPUT.MIN_SIZE_TRAIN", "(512, -1)"),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.MAX_SIZE_TEST", 0),
        ("INPUT.FORMAT", "L"),
        ("INPUT.PADDING_VALUE", 256),
        ("INPUT.MAX_DRAWS", 0),
        ("INPUT.ROUNDING_TEST", "down"),
        ("INPUT.CROP.SIZE", "(512,)"),
        ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"),
        ("MODEL.PIXEL_MEAN", "[]"),
        ("MODEL.PIXEL_STD", "[1.0]"),
        ("MODEL.TIMM.NORM", "GN"),
        ("MODEL.TIMM.DROP_PATH_RATE", 1.0),
        ("MODEL.BACKBONE.FREEZE_AT", 6),
        ("MODEL.BACKBONE.FREEZE_AT", -2),
        ("MODEL.MASK_FORMER.DEC_LAYERS", 0),
        ("MODEL.MASK_FORMER.DROPOUT", 1.5),
        ("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 1.5),
        ("MODEL.MASK_FORMER.CLASS_WEIGHT", -1.0),
        ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 0),
        ("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 0.5),
        ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", 1.5),
        (f"{DEFORMABLE}_N_POINTS", 8),
        (f"{DEFORMABLE}_N_HEADS", 4),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 0),
        ("MODEL.RESNETS.DEPTH", 20),
        ("OUTPUT_DIR", "''"),
        ("SEED", 2**40),
        ("SOLVER.WEIGHT_DECAY_BIAS", 0.1),
    ],
)
def test_impossible_value_is_refused_by_key(key: str, value: Any):
    with pytest.raises(InputError, match=rf"^{key} is .*expected"):
        load(R50, key, value)


def test_timm_needs_a_name_and_eomt_has_its_own_backbone():
    timm = ("MODEL.BACKBONE.NAME", "build_timm_backbone")
    with pytest.raises(InputError, match=r"^MODEL\.TIMM\.NAME is ''"):
        load(R50, *timm)
    with pytest.raises(InputError, match=r"^MODEL\.BACKBONE\.NAME is 'build_timm_backbone'.*EoMT"):
        load(R50, *timm, "MODEL.TIMM.NAME", "resnet18", "MODEL.META_ARCHITECTURE", "EoMT")
    with pytest.raises(InputError, match=r"^MODEL\.TIMM\.NAME is 'resnet18'.* no effect .*build_resnet_backbone"):
        load(R50, "MODEL.TIMM.NAME", "resnet18")


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("MODEL.MASK_FORMER.MASK_LOSS", "focal", "dense"),
        ("MODEL.META_ARCHITECTURE", "MaskFromer", "MaskFormer"),
        ("MODEL.BACKBONE.NAME", "swin", "D2SwinTransformer"),
        ("MODEL.SEM_SEG_HEAD.NAME", "Head", "PerPixelBaselineHead"),
        ("SOLVER.LR_SCHEDULER_NAME", "Poly", "TwoStageWarmupPolyLR"),
        ("MODEL.RESNETS.NORM", "Batch", "FrozenBN"),
        ("MODEL.SEM_SEG_HEAD.NORM", "Group", "GN"),
    ],
)
def test_unknown_name_is_refused_with_the_names_there_are(key: str, value: Any, option: str):
    with pytest.raises(InputError, match=rf"^{key} is {value!r}, expected .*\b{option}\b"):
        load(R50, key, value)


@pytest.mark.parametrize("names", [["res2", "res9"], []])
def test_unknown_feature_is_refused_with_those_of_the_backbone(names: list[str]):
    cfg = load(R50, "MODEL.SEM_SEG_HEAD.IN_FEATURES", names, "MODEL.DEVICE", "cpu")
    with pytest.raises(
        InputError, match=rf"IN_FEATURES is {re.escape(repr(names))}, expected .*res2, res3, res4, res5"
    ):
        build_model(cfg)


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        (MASK2FORMER, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 48),  # the groups of GroupNorm
        (MASK2FORMER, "MODEL.SEM_SEG_HEAD.NORM LN MODEL.SEM_SEG_HEAD.CONVS_DIM", 48),
        (R50, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 48),
        (MASK2FORMER, "MODEL.MASK_FORMER.HIDDEN_DIM 96 MODEL.MASK_FORMER.NHEADS 12 MODEL.SEM_SEG_HEAD.CONVS_DIM", 64),
        (COCO, "MODEL.MASK_FORMER.HIDDEN_DIM 96 MODEL.MASK_FORMER.NHEADS 12 MODEL.SEM_SEG_HEAD.CONVS_DIM", 64),
        (MASK2FORMER, "MODEL.MASK_FORMER.HIDDEN_DIM", 100),  # 8 heads
        (R50, "MODEL.MASK_FORMER.HIDDEN_DIM", 100),
        (R50, "MODEL.MASK_FORMER.NHEADS 1 MODEL.MASK_FORMER.HIDDEN_DIM", 6),
        (MASK2FORMER, "MODEL.MASK_FORMER.DEC_LAYERS", 1),
        (MASK2FORMER, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 0),
        (EOMT, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 0),
        (EOMT, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 24),
    ],
)
def test_values_that_do_not_go_together_are_refused(recipe: str, key: str, value: int):
    *others, key = key.split()
    with pytest.raises(InputError, match=rf"{key} is {value}, expected .*(multiple|or more)"):
        load(recipe, *others, key, value)


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        (R50, "MODEL.KEYPOINT_ON", True),
        (R50, "MODEL.LOAD_PROPOSALS", True),
        (R50, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
        (R50, "MODEL.SEM_SEG_HEAD.LOSS_TYPE", "cross_entropy"),
        (R50, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 2.0),
        (R50, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 3),
        (R50, "MODEL.RESNETS.RES5_MULTI_GRID", "[1, 2, 8]"),
        (R50, "MODEL.RESNETS.DEFORM_MODULATED", True),
        (R50, "MODEL.SWIN.EMBED_DIM", 48),
        (R50, "MODEL.FPN.OUT_CHANNELS", 64),
        (R50, "INPUT.IMAGE_SIZE", 512),
        (R50, "DATALOADER.REPEAT_THRESHOLD", 0.1),
        (R50, "DATASETS.PROPOSAL_FILES_TRAIN", "('a.pkl',)"),
        (R50, "SOLVER.NESTEROV", True),
        (R50, "SOLVER.MOMENTUM", 0.5),
        (R50, "SOLVER.BIAS_LR_FACTOR", 2.0),
        (R50, "SOLVER.STEPS", "(100,)"),
        (R50, "SOLVER.LR_REFERENCE_BATCH", 32),
        (R50, "SOLVER.LAYER_DECAY_SPARED", 2),
        (R50, "SOLVER.WARMUP_STAGES", "(10, 10)"),
        (COCO, "SOLVER.POLY_LR_POWER", 2.0),
        (R50, "TEST.PRECISE_BN.ENABLED", True),
        (R50, "TEST.KEYPOINT_OKS_SIGMAS", "[0.1]"),
        (R50, "VIS_PERIOD", 10),
        (R50, "GLOBAL.HACK", 2.0),
        (R50, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 112),
        (R50, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8),
        (R50, f"{DEFORMABLE}_IN_FEATURES", "['res4', 'res5']"),
        (MASK2FORMER, "MODEL.MASK_FORMER.ENC_LAYERS", 1),
        (MASK2FORMER, "INPUT.MIN_SIZE_TRAIN", "(640,)"),
        (MASK2FORMER, "INPUT.CROP.ENABLED", True),
        (SWIN, "MODEL.RESNETS.DEPTH", 101),
        (SWIN, "MODEL.RESNETS.NORM", "BN"),
        (PER_PIXEL, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True),
        (PER_PIXEL, "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.5),
        (PER_PIXEL, "MODEL.MASK_FORMER.MASK_LOSS", "points"),
        (PER_PIXEL, "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "MultiScaleMaskedTransformerDecoder"),
    ],
)
def test_key_without_effect_is_refused_with_the_reason(recipe: str, key: str, value: Any):
    with pytest.raises(InputError, match=rf"{key} is .*has no effect with|{key} is .*has no effect (in|where)"):
        load(recipe, key, value)


EOMT = ("MODEL.META_ARCHITECTURE", "EoMT", "MODEL.EOMT.NUM_BLOCKS", 2)
STAGES = ("SOLVER.LR_SCHEDULER_NAME", "TwoStageWarmupPolyLR")
ANNEALED = ("MODEL.EOMT.ANNEALING_STARTS", "[1, 2]", "MODEL.EOMT.ANNEALING_ENDS", "[2, 3]")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*STAGES, "SOLVER.MAX_ITER", 1500), r"WARMUP_STAGES is \(500, 1000\), expected .*below SOLVER\.MAX_ITER"),
        ((*STAGES, "SOLVER.WARMUP_ITERS", 5), r"WARMUP_ITERS is 5.*no effect with .*TwoStageWarmupPolyLR"),
        ((*STAGES, "SOLVER.POLY_LR_CONSTANT_ENDING", 0.5), r"CONSTANT_ENDING is 0\.5.*no effect"),
        (("MODEL.EOMT.ANNEALING_STARTS", "[1, 2, 3]"), r"STARTS is \[1, 2, 3\], .*each of MODEL\.EOMT\.NUM_BLOCKS"),
        (("MODEL.EOMT.ANNEALING_ENDS", "[1]"), r"ENDS is \[1\], .*each of MODEL\.EOMT\.NUM_BLOCKS"),
        (("MODEL.EOMT.ANNEALING_STARTS", "[-1, 2]"), r"STARTS is \[-1, 2\]"),
        (("MODEL.EOMT.ANNEALING_STARTS", "[1, 2]"), r"ENDS is \[\], .*each of MODEL\.EOMT\.ANNEALING_STARTS"),
        (
            ("MODEL.EOMT.ANNEALING_STARTS", "[1, 2]", "MODEL.EOMT.ANNEALING_ENDS", "[2, 2]"),
            r"ENDS is \[2, 2\], .*after each of",
        ),
        (
            (*ANNEALED, "MODEL.EOMT.MASKED_ATTENTION", False),
            r"ANNEALING_STARTS is \[1, 2\].*no effect with MODEL\.EOMT\.MASKED_ATTENTION False",
        ),
    ],
)
def test_stages_and_annealing_are_checked_together_with_what_they_belong_to(options: tuple[Any, ...], message: str):
    with pytest.raises(InputError, match=message):
        load_config("", [str(option) for option in (*EOMT, *options)])


@pytest.mark.parametrize(
    "options",
    [
        (*STAGES, "SOLVER.WARMUP_STAGES", "(500, 999)", "SOLVER.MAX_ITER", 1500),
        ("SOLVER.LAYER_DECAY", 0.8, "SOLVER.LAYER_DECAY_SPARED", 2),
        ("MODEL.EOMT.ANNEALING_STARTS", "[0, 5]", "MODEL.EOMT.ANNEALING_ENDS", "[3, 6]"),
    ],
)
def test_stages_decay_and_annealing_are_accepted(options: tuple[Any, ...]):
    load_config("", [str(option) for option in (*EOMT, *options)])


@pytest.mark.parametrize(
    ("condition", "key", "value"),
    [
        (("MASK_LOSS", "dense"), "TRAIN_NUM_POINTS", 1),
        (("TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"), "IMPORTANCE_SAMPLE_RATIO", 1.0),
        (("IMPORTANCE_SAMPLE_RATIO", 0.0), "OVERSAMPLE_RATIO", 1.0),
    ],
)
def test_key_of_sampled_points_is_refused_where_another_makes_it_void(condition: tuple[str, Any], key: str, value: Any):
    options = (f"MODEL.MASK_FORMER.{condition[0]}", condition[1], f"MODEL.MASK_FORMER.{key}", value)
    with pytest.raises(InputError, match=rf"^MODEL\.MASK_FORMER\.{key} is 1.*has no effect"):
        load(MASK2FORMER, *options)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (R50, ("MODEL.MASK_FORMER.MASK_LOSS", "points", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 112)),
        (MASK2FORMER, ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 112, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8)),
        (MASK2FORMER, (f"{DEFORMABLE}_N_HEADS", 4, "MODEL.MASK_FORMER.NHEADS", 4)),
        (MASK2FORMER, (f"{DEFORMABLE}_IN_FEATURES", "['res4', 'res5']", "INPUT.IMAGE_SIZE", 512)),
        (R50, ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.5, "SOLVER.NESTEROV", True)),
        (R50, ("MODEL.RESNETS.NORM", "BN", "TEST.PRECISE_BN.ENABLED", True)),
        (R50, ("INPUT.DATASET_MAPPER_NAME", "coco_panoptic_lsj", "INPUT.IMAGE_SIZE", 512, "INPUT.COLOR_AUG_SSD", True)),
        (R50, ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1e999")),
        (R50, ("SOLVER.WEIGHT_DECAY_BIAS", 0.0001)),  # as older Detectron2 writes it into each config.yaml
        (R50, ("INPUT.MASK_FORMAT", "bitmask")),  # which Detectron2's DatasetMapper reads
        (R50, ("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 44.5, 0.2]]")),
        (COCO, ("SOLVER.GAMMA", 0.5)),
        (R50, ("MODEL.BACKBONE.FREEZE_AT", -1)),  # Swin's own files for Detectron2 have it; it is 0
        (SWIN, ("MODEL.BACKBONE.FREEZE_AT", -1)),
        (PER_PIXEL, ("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 2.0)),
    ],
)
def test_key_that_is_read_is_accepted(recipe: str, options: tuple[Any, ...]):
    load(recipe, *options)


def test_key_that_a_base_brings_is_refused_to_nobody_who_chooses_otherwise(tmp_path: Path):
    load(COCO, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")  # STEPS and GAMMA are the recipe's
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {REPOSITORY / 'configs' / COCO}\nSOLVER: {{LR_SCHEDULER_NAME: WarmupPolyLR}}\n")
    load_config(str(path))
    path.write_text(path.read_text().replace("WarmupPolyLR}", "WarmupPolyLR, STEPS: [7]}"))
    with pytest.raises(InputError, match=r"SOLVER\.STEPS is \(7,\)"):
        load_config(str(path))


def test_values_of_the_released_files_are_accepted():
    for recipe in (*FIRST.values(), *SECOND.values()):
        load_config("", [str(word) for pair in recipe.items() for word in pair])


@pytest.mark.parametrize("options", [(), ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR")])  # STEPS are the recipe's
def test_configuration_that_a_run_wrote_is_accepted(tmp_path: Path, options: tuple[str, ...]):
    (tmp_path / "config.yaml").write_text(load(COCO, *options).dump())
    read = load_config(str(tmp_path / "config.yaml"))
    assert yaml.safe_load(read.dump()) == yaml.safe_load(load(COCO, *options).dump())


def test_tables_name_keys_that_exist():
    cfg = default_config()
    keys = [key for *_, names in [*_RANGES, *_UNREAD_WHERE, *_UNREAD_WITH] for key in names.split()]
    for key in (*keys, *(key for key, *_ in _UNREAD_WITH), *_CHOICES, *_RELEASED, *(key for key, *_ in _WHOLE)):
        at(cfg, key)
