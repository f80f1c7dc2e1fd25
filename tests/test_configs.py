from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode

from maskformer.config import load_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
LEAVES = [name for name in FILES if not name.startswith("base/")]

R50 = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STEM_TYPE": "basic",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 20.0,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DROPOUT": 0.1,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.DEC_LAYERS": 6,
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.RANDOM_FLIP": "horizontal",
    "DATALOADER.NUM_WORKERS": 4,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "SOLVER.WARMUP_FACTOR": 1.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "TEST.EVAL_PERIOD": 5000,
    "TEST.AUG.FLIP": True,
}
POLY = {
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "SOLVER.WARMUP_ITERS": 0,
}
ENCODER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
}


def fixed_crop(size: int) -> dict[str, Any]:
    return {
        "INPUT.MIN_SIZE_TRAIN": tuple(int(x * 0.1 * size) for x in range(5, 21)),
        "INPUT.MAX_SIZE_TRAIN": 4 * size,
        "INPUT.MIN_SIZE_TEST": size,
        "INPUT.MAX_SIZE_TEST": 4 * size,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": [size, size],
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
        "INPUT.COLOR_AUG_SSD": True,
        "INPUT.SIZE_DIVISIBILITY": size,
        "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
        "TEST.AUG.MIN_SIZES": tuple(int(x * size) for x in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        "TEST.AUG.MAX_SIZE": 7 * size,
    }


RECIPES = {
    "ade20k-150/maskformer_R50_bs16_160k.yaml": {
        **R50,
        **POLY,
        **fixed_crop(512),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 150,
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
        "DATASETS.TRAIN": ("ade20k_sem_seg_train",),
        "DATASETS.TEST": ("ade20k_sem_seg_val",),
        "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.MAX_ITER": 160_000,
    },
    "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k.yaml": {
        **R50,
        **POLY,
        **ENCODER,
        **fixed_crop(640),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 150,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.7,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
        "DATASETS.TRAIN": ("ade20k_panoptic_train",),
        "DATASETS.TEST": ("ade20k_panoptic_val",),
        "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.MAX_ITER": 720_000,
    },
    "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml": {
        **R50,
        **ENCODER,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133,
        "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 0,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
        "DATASETS.TRAIN": ("coco_2017_train_panoptic",),
        "DATASETS.TEST": ("coco_2017_val_panoptic",),
        "INPUT.DATASET_MAPPER_NAME": "detr_panoptic",
        "INPUT.MIN_SIZE_TRAIN": tuple(range(480, 801, 32)),
        "INPUT.MAX_SIZE_TRAIN": 1333,
        "INPUT.MIN_SIZE_TEST": 800,
        "INPUT.MAX_SIZE_TEST": 1333,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute_range",
        "INPUT.CROP.SIZE": [384, 600],
        "INPUT.COLOR_AUG_SSD": False,
        "INPUT.SIZE_DIVISIBILITY": -1,
        "SOLVER.IMS_PER_BATCH": 64,
        "SOLVER.MAX_ITER": 554_400,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER.STEPS": (369_600,),
        "SOLVER.GAMMA": 0.1,
        "SOLVER.WARMUP_ITERS": 10,
    },
}


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def resolved(path: Path) -> dict[str, Any]:
    cfg: CfgNode = load_config(str(path))
    return flatten(cfg)


@pytest.mark.parametrize("name", RECIPES)
def test_resolved_values_are_the_released_recipe(name: str):
    values = resolved(CONFIGS / name)
    assert {key: values[key] for key in RECIPES[name]} == RECIPES[name]


@pytest.mark.parametrize("name", FILES)
def test_file_is_plain_yaml(name: str):
    assert isinstance(yaml.safe_load((CONFIGS / name).read_text()), dict)


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_states_only_differences_from_its_base(name: str):
    content = yaml.safe_load((CONFIGS / name).read_text())
    path = CONFIGS / name
    base, own = resolved(path.parent / content.pop("_BASE_")), resolved(path)
    repeated = {key for key in flatten(content) if base[key] == own[key]}
    assert repeated <= {"MODEL.WEIGHTS"}  # "" is worth saying: trained from scratch


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_says_which_data_it_trains_on_and_is_measured_by(name: str):
    values = resolved(CONFIGS / name)
    assert values["DATASETS.TRAIN"]
    assert values["DATASETS.TEST"]


def test_iterations_and_batch_are_those_in_the_file_name():
    for name in RECIPES:
        values = resolved(CONFIGS / name)
        batch, iterations = values["SOLVER.IMS_PER_BATCH"], values["SOLVER.MAX_ITER"] // 1000
        assert name.endswith(f"_bs{batch}_{iterations}k.yaml")
