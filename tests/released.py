"""What the released configuration files of both generations resolve to, as far as it is not a default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parent
Recipe = dict[str, Any]

FIRST: dict[str, Recipe] = json.loads((_TESTS / "reference/recipes.json").read_text())


def _read_second() -> dict[str, Recipe]:
    """Rows of the file are laid over each other: every recipe, the folder's Base-*, its others, the recipe itself."""
    rows: dict[str, Recipe] = json.loads((_TESTS / "reference2/recipes.json").read_text())
    recipes = {}
    for name in (name for name in rows if name.endswith(".yaml")):
        folder = "/".join(name.split("/")[:2])
        base = next(row for row in rows if row.startswith(f"{folder}/Base-"))
        of_leaves = {} if name == base else {**rows["every recipe but Base-*"], **rows[f"{folder}/*"], **rows[name]}
        recipes[f"mask2former/{name}"] = {**rows["every recipe"], **rows[base], **of_leaves}
    return recipes


SECOND = _read_second()

# Iterations of an epoch, with 16 images each.
_STEPS = {"COCOPanoptic": 7391, "COCOInstance": 7391, "ADE20KPanoptic": 1263, "ADE20KSemantic": 1263}
_STEPS["CityscapesSemantic"] = 186
_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
_DATASETS = {
    "COCOPanoptic": ("coco_2017_train_panoptic", "coco_2017_val_panoptic"),
    "COCOInstance": ("coco_2017_train", "coco_2017_val"),
    "ADE20KPanoptic": ("ade20k_panoptic_train", "ade20k_panoptic_val"),
    "ADE20KSemantic": ("ade20k_sem_seg_train", "ade20k_sem_seg_val"),
    "CityscapesSemantic": ("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val"),
}
_MAPPERS = {"panoptic": "coco_panoptic_lsj", "instance": "coco_instance_lsj", "semantic": "mask_former_semantic_lsj"}
_WEIGHTS = "https://huggingface.co/timm/vit_{}/resolve/main/model.safetensors"


def _read_eomt() -> dict[str, Recipe]:
    """EoMT's files name the arguments of its own classes; here they are our keys."""
    content = json.loads((_TESTS / "reference2/eomt_recipes.json").read_text())
    recipes = {}
    for name, row in content["configs"].items():
        generation, dataset, task, file = name.split("/")
        row = {**content["every recipe"], **row}
        parts = {"model": "model", "network": "model.init_args.network", "data": "data"}
        parts["encoder"] = "model.init_args.network.init_args.encoder"
        values: Recipe = {f"trainer.{key}": value for key, value in content["trainer_defaults"].items()}
        for part, place in parts.items():
            prefix = f"{place}.init_args."
            values |= {f"{part}.{key}": value for key, value in content["defaults"][row[f"{place}.class_path"]].items()}
            own = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
            values |= {f"{part}.{key}": value for key, value in own.items() if "." not in key}
        values |= {key: value for key, value in row.items() if key.startswith("trainer.")}
        suffix = "_dinov3" if generation == "dinov3" else ""
        ours = file.replace("eomt_", f"eomt/{dataset}_{task}_").replace(".yaml", f"{suffix}.yaml")
        recipes[ours] = _translate(values, task, row["data.class_path"].split(".")[-1])
    return recipes


# Arguments of EoMT's classes whose values are those of our keys.
_SAME = {
    "encoder.patch_size": ["MODEL.EOMT.PATCH_SIZE"],
    "network.num_q": ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"],
    "network.num_blocks": ["MODEL.EOMT.NUM_BLOCKS"],
    "network.masked_attn_enabled": ["MODEL.EOMT.MASKED_ATTENTION"],
    "model.attn_mask_annealing_start_steps": ["MODEL.EOMT.ANNEALING_STARTS"],
    "model.attn_mask_annealing_end_steps": ["MODEL.EOMT.ANNEALING_ENDS"],
    "model.ignore_idx": ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE"],
    "model.num_points": ["MODEL.MASK_FORMER.TRAIN_NUM_POINTS"],
    "model.oversample_ratio": ["MODEL.MASK_FORMER.OVERSAMPLE_RATIO"],
    "model.importance_sample_ratio": ["MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO"],
    "model.no_object_coefficient": ["MODEL.MASK_FORMER.NO_OBJECT_WEIGHT"],
    "model.class_coefficient": ["MODEL.MASK_FORMER.CLASS_WEIGHT"],
    "model.mask_coefficient": ["MODEL.MASK_FORMER.MASK_WEIGHT"],
    "model.dice_coefficient": ["MODEL.MASK_FORMER.DICE_WEIGHT"],
    "model.mask_thresh": ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"],
    "model.overlap_thresh": ["MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD"],
    "model.eval_top_k_instances": ["TEST.DETECTIONS_PER_IMAGE"],
    "model.llrd": ["SOLVER.LAYER_DECAY"],
    "model.weight_decay": ["SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_EMBED"],
    "model.warmup_steps": ["SOLVER.WARMUP_STAGES"],
    "model.poly_power": ["SOLVER.POLY_LR_POWER"],
    "trainer.gradient_clip_val": ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE"],
    "data.batch_size": ["SOLVER.IMS_PER_BATCH"],
    "data.num_classes": ["MODEL.SEM_SEG_HEAD.NUM_CLASSES"],
    "data.num_workers": ["DATALOADER.NUM_WORKERS"],
    "data.color_jitter_enabled": ["INPUT.COLOR_AUG_SSD"],
}
# The same in all files, and true here whatever the keys say; and which weights a program starts from.
_FIXED = {
    "trainer.devices": 1,
    "trainer.seed_everything": 0,
    "trainer.batch_size": "per device, see data defaults",
    "trainer.precision": "16-mixed",
    "trainer.gradient_clip_algorithm": "norm",
    "model.attn_mask_annealing_enabled": True,
    "model.load_ckpt_class_head": True,
    "model.ckpt_path": None,
    "encoder.ckpt_path": None,
}


def _translate(values: Recipe, task: str, data: str) -> Recipe:
    """Our keys, of all that EoMT's files and classes say."""
    assert {key: values.pop(key) for key in _FIXED} == _FIXED
    keys = {ours: values.pop(theirs) for theirs, all_ours in _SAME.items() if theirs in values for ours in all_ours[:1]}
    keys |= dict.fromkeys(_SAME["model.weight_decay"], keys["SOLVER.WEIGHT_DECAY"])
    backbone, is_rotary = values.pop("encoder.backbone_name").split("/")[-1], values.pop("model.delta_weights")
    size = next(size for size in _SIZES if backbone.startswith((f"vit_{size}_patch14_reg4", f"dinov3-vit{size[0]}16")))
    weights = f"{size}_patch16_dinov3.lvd1689m" if is_rotary else f"{size}_patch14_reg4_dinov2.lvd142m"
    (side,) = set(values.pop("data.img_size"))
    # The released program never reaches the branch that reads lr_mult.
    assert values.pop("model.lr_mult") == 1.0 or keys["SOLVER.LAYER_DECAY"] == 1.0
    keys |= {
        **dict(zip((f"MODEL.EOMT.{key}" for key in ("EMBED_DIM", "DEPTH", "NUM_HEADS")), _SIZES[size])),
        **dict.fromkeys(("MODEL.EOMT.IMAGE_SIZE", "INPUT.IMAGE_SIZE", "INPUT.MIN_SIZE_TEST"), side),
        **{f"MODEL.MASK_FORMER.TEST.{name.upper()}_ON": name == task for name in _MAPPERS},
        **dict(zip(("INPUT.MIN_SCALE", "INPUT.MAX_SCALE"), values.pop("data.scale_range"))),
        **{"MODEL.META_ARCHITECTURE": "EoMT", "MODEL.WEIGHTS": _WEIGHTS.format(weights)},
        **{"MODEL.EOMT.SWIGLU": size == "giant", "MODEL.EOMT.ROTARY": is_rotary},
        **{"DATASETS.TRAIN": [_DATASETS[data][0]], "DATASETS.TEST": [_DATASETS[data][1]]},
        **{"INPUT.DATASET_MAPPER_NAME": _MAPPERS[task], "INPUT.PADDING_VALUE": 0, "INPUT.ROUNDING_TEST": "even"},
        "INPUT.MAX_DRAWS": 10 if values.pop("data.check_empty_targets") else 1,
        **{"SOLVER.LR_SCHEDULER_NAME": "TwoStageWarmupPolyLR", "SOLVER.BASE_LR": float(values.pop("model.lr"))},
        **{"SOLVER.BACKBONE_MULTIPLIER": 1.0, "SOLVER.AMP.ENABLED": True},
        "SOLVER.LAYER_DECAY_SPARED": 0 if values.pop("model.llrd_l2_enabled") else keys["MODEL.EOMT.NUM_BLOCKS"],
        "SOLVER.MAX_ITER": values.pop("trainer.max_epochs") * _STEPS[data],
        "TEST.EVAL_PERIOD": values.pop("trainer.check_val_every_n_epoch", 1) * _STEPS[data],
    }
    if task == "semantic":
        keys |= {"INPUT.MAX_SIZE_TEST": 1000000, "MODEL.MASK_FORMER.TEST.SLIDING_WINDOW": [side, side]}
        keys["MODEL.MASK_FORMER.TEST.SLIDING_WINDOW_OVERLAP"] = 0.0
    else:
        keys |= dict.fromkeys(("INPUT.MAX_SIZE_TEST", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY"), side)
    assert not values, f"nothing says what is made of {values}"
    return keys


EOMT = _read_eomt()
# Of the class of each panoptic dataset.
EOMT_STUFF: dict[str, list[int]] = json.loads((_TESTS / "reference2/eomt_recipes.json").read_text())["stuff_classes"]
