from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode

from maskformer.config import load_config
from maskformer.tools.analyze import analyze

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


def semantic(
    num_classes: int, train: str, test: str, max_iter: int, *, batch: int = 16, ignore: int = 255
) -> dict[str, Any]:
    return {
        **R50,
        **POLY,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": num_classes,
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": ignore,
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
        "DATASETS.TRAIN": (train,),
        "DATASETS.TEST": (test,),
        "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.MAX_ITER": max_iter,
    }


ADE20K = {**semantic(150, "ade20k_sem_seg_train", "ade20k_sem_seg_val", 160_000), **fixed_crop(512)}
ADE20K_FULL = {
    **semantic(847, "ade20k_full_sem_seg_train", "ade20k_full_sem_seg_val", 200_000, ignore=65535),
    **fixed_crop(512),
}
COCO_STUFF = {
    **semantic(171, "coco_2017_train_stuff_10k_sem_seg", "coco_2017_test_stuff_10k_sem_seg", 60_000, batch=32),
    **fixed_crop(640),
    "INPUT.MIN_SIZE_TRAIN": tuple(int(x * 0.1 * 640) for x in range(5, 16)),
}
CITYSCAPES = {
    **semantic(19, "cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val", 90_000),
    **fixed_crop(1024),
    "INPUT.MAX_SIZE_TEST": 2048,
    "INPUT.CROP.SIZE": [512, 1024],
    "INPUT.SIZE_DIVISIBILITY": -1,
    "TEST.AUG.MAX_SIZE": 4096,
}
MAPILLARY = {
    **semantic(65, "mapillary_vistas_sem_seg_train", "mapillary_vistas_sem_seg_val", 300_000, ignore=65),
    **fixed_crop(2048),
    "INPUT.CROP.SIZE": [1280, 1280],
    "INPUT.SIZE_DIVISIBILITY": 1280,
}
ADE20K_PANOPTIC = {
    **ADE20K,
    **ENCODER,
    **fixed_crop(640),
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.7,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
    "DATASETS.TRAIN": ("ade20k_panoptic_train",),
    "DATASETS.TEST": ("ade20k_panoptic_val",),
    "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
    "SOLVER.MAX_ITER": 720_000,
}
COCO_PANOPTIC = {
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
}

R101 = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/torchvision/R-101.pkl", "MODEL.RESNETS.DEPTH": 101}
R101C = {
    "MODEL.WEIGHTS": "detectron2://DeepLab/R-103.pkl",
    "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],
}
PER_PIXEL = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselineHead"}
PER_PIXEL_PLUS = {**PER_PIXEL, "MODEL.SEM_SEG_HEAD.NAME": "PerPixelBaselinePlusHead"}


def swin(weights: str, dim: int, depth: int, heads: int, window: int, size: int) -> dict[str, Any]:
    return {
        "MODEL.WEIGHTS": f"swin_{weights}.pkl",
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.PRETRAIN_IMG_SIZE": size,
        "MODEL.SWIN.EMBED_DIM": dim,
        "MODEL.SWIN.DEPTHS": [2, 2, depth, 2],
        "MODEL.SWIN.NUM_HEADS": [heads, 2 * heads, 4 * heads, 8 * heads],
        "MODEL.SWIN.WINDOW_SIZE": window,
        "MODEL.SWIN.DROP_PATH_RATE": 0.3,
        "MODEL.SWIN.APE": False,
        "MODEL.SWIN.PATCH_NORM": True,
        "SOLVER.BASE_LR": 6e-5,
        "SOLVER.WEIGHT_DECAY": 0.01,
        "SOLVER.BACKBONE_MULTIPLIER": 1.0,
        "SOLVER.WARMUP_FACTOR": 1e-6,
        "SOLVER.WARMUP_ITERS": 1500,
    }


SWINS = {
    "tiny": swin("tiny_patch4_window7_224", 96, 6, 3, 7, 224),
    "small": swin("small_patch4_window7_224", 96, 18, 3, 7, 224),
    "base_IN21k_384": swin("base_patch4_window12_384_22k", 128, 18, 4, 12, 384),
    "large_IN21k_384": swin("large_patch4_window12_384_22k", 192, 18, 6, 12, 384),
}
NO_ENCODER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": True,
}
RESNETS = {"R50": {}, "R101": R101, "R101c": R101C}


def family(pattern: str, base: dict[str, Any], variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """File name -> values, for each backbone of a family."""
    return {pattern.format(name): {**base, **values} for name, values in variants.items()}


def only(*names: str) -> dict[str, dict[str, Any]]:
    return {name: RESNETS[name] for name in names}


RECIPES = {
    **family("ade20k-150/maskformer_{}_bs16_160k.yaml", ADE20K, RESNETS),
    **family("ade20k-150/swin/maskformer_swin_{}_bs16_160k.yaml", ADE20K, {n: SWINS[n] for n in ("tiny", "small")}),
    **family(
        "ade20k-150/swin/maskformer_swin_{}_bs16_160k_res640.yaml",
        {**ADE20K, **fixed_crop(640)},
        {n: SWINS[n] for n in ("base_IN21k_384", "large_IN21k_384")},
    ),
    **family("ade20k-150-panoptic/maskformer_panoptic_{}_bs16_720k.yaml", ADE20K_PANOPTIC, only("R50", "R101")),
    **family("ade20k-full-847/maskformer_{}_bs16_200k.yaml", ADE20K_FULL, RESNETS),
    **family("cityscapes-19/maskformer_{}_bs16_90k.yaml", CITYSCAPES, only("R101", "R101c")),
    **family("coco-stuff-10k-171/maskformer_{}_bs32_60k.yaml", COCO_STUFF, RESNETS),
    **family("mapillary-vistas-65/maskformer_{}_bs16_300k.yaml", MAPILLARY, only("R50")),
    **family("coco-panoptic/maskformer_panoptic_{}_bs64_554k.yaml", COCO_PANOPTIC, only("R50", "R101")),
    **family("coco-panoptic/swin/maskformer_panoptic_swin_{}_bs64_554k.yaml", {**COCO_PANOPTIC, **NO_ENCODER}, SWINS),
    **family("ade20k-150/per_pixel_baseline_{}_bs16_160k.yaml", {**ADE20K, **PER_PIXEL}, only("R50")),
    **family("ade20k-150/per_pixel_baseline_plus_{}_bs16_160k.yaml", {**ADE20K, **PER_PIXEL_PLUS}, only("R50")),
    **family("ade20k-full-847/per_pixel_baseline_{}_bs16_200k.yaml", {**ADE20K_FULL, **PER_PIXEL}, only("R50")),
    **family(
        "ade20k-full-847/per_pixel_baseline_plus_{}_bs16_200k.yaml", {**ADE20K_FULL, **PER_PIXEL_PLUS}, only("R50")
    ),
    **family("coco-stuff-10k-171/per_pixel_baseline_{}_bs32_60k.yaml", {**COCO_STUFF, **PER_PIXEL}, only("R50")),
    **family(
        "coco-stuff-10k-171/per_pixel_baseline_plus_{}_bs32_60k.yaml", {**COCO_STUFF, **PER_PIXEL_PLUS}, only("R50")
    ),
}
OURS = {
    "coco-instance/maskformer_instance_R50_bs64_554k.yaml": {
        **COCO_PANOPTIC,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 80,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": False,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
        "DATASETS.TRAIN": ("coco_2017_train",),
        "DATASETS.TEST": ("coco_2017_val",),
        "INPUT.DATASET_MAPPER_NAME": "mask_former_instance",
        "INPUT.CROP.ENABLED": False,
    },
    "cityscapes-19-panoptic/maskformer_panoptic_R50_bs16_90k.yaml": {
        **CITYSCAPES,
        **ENCODER,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
        "DATASETS.TRAIN": ("cityscapes_fine_panoptic_train",),
        "DATASETS.TEST": ("cityscapes_fine_panoptic_val",),
        "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
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


@pytest.mark.parametrize("name", [*RECIPES, *OURS])
def test_resolved_values_are_the_recipe(name: str):
    values, recipe = resolved(CONFIGS / name), {**RECIPES, **OURS}[name]
    assert {key: values[key] for key in recipe} == recipe


def test_every_released_recipe_has_its_file():
    assert len(RECIPES) == 30
    trainable = {name for name in LEAVES if "_bs" in name}
    assert trainable == set(RECIPES) | set(OURS)


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
    for name in [*RECIPES, *OURS]:
        values = resolved(CONFIGS / name)
        batch, iterations = values["SOLVER.IMS_PER_BATCH"], values["SOLVER.MAX_ITER"] // 1000
        assert f"_bs{batch}_{iterations}k" in name


@pytest.mark.parametrize("name", LEAVES)
def test_model_of_every_file_is_built_and_runs(name: str):
    whole, backbone, head = analyze(load_config(str(CONFIGS / name)), (64, 64), depth=1)
    assert (backbone.name, head.name) == ("backbone", "sem_seg_head")
    assert whole.parameters == backbone.parameters + head.parameters
    assert min(backbone.multiply_adds, head.multiply_adds) > 0
